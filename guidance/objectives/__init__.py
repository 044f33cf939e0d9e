"""Objectives: from items of one kind of rows to what a loss of one part takes."""

from __future__ import annotations

from trimtab.guidance.objectives.base import Objective as Objective
from trimtab.guidance.objectives.in_memory import AdvantageObjective as AdvantageObjective
from trimtab.guidance.objectives.in_memory import Pair as Pair
from trimtab.guidance.objectives.in_memory import RewardObjective as RewardObjective
from trimtab.guidance.objectives.in_memory import ScoredRollout as ScoredRollout
from trimtab.guidance.objectives.in_memory import ValueObjective as ValueObjective
from trimtab.guidance.objectives.replies import ReplyFeatures as ReplyFeatures
from trimtab.guidance.objectives.replies import fetch as fetch
from trimtab.guidance.objectives.replies import lay_out as lay_out
