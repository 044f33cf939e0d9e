"""The baseline that heads must face: the policy itself fine-tuned by low-rank adapters (peft, TRL)."""
