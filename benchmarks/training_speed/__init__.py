"""A head trained on cached features beside the policy fine-tuned by TRL: time of an epoch, and memory."""
