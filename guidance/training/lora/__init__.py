"""LoRA: fine-tunes the policy itself (peft, TRL), the baseline that heads must face."""
