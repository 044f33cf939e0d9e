"""RLHF on a head: the policy tilted by it writes replies, they are scored, the head learns, and so on."""
