"""Gold task: stories judged by a lexicon, to see what a head buys by a reward that nobody trained."""
