"""Training speed: a head on cached features beside the policy fine-tuned by TRL; an epoch's time, and memory."""
