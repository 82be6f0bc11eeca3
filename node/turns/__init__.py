"""Whose turn is it: as many answers run as the runtime has slots, the rest wait, least-served principal first.

turns.Turns      what the node uses: a lane for each kind of slot, one bound on all who wait
lane.Lane        the slots of one lane, who holds them, who waits, what they are told
queue.FairQueue  who is next: pure order, no clock of its own, no tasks
slots.Slots      which slot: the one whose prompt cache fits
"""

from node.turns.lane import OnPlace, Turn
from node.turns.turns import Turns

__all__ = ["OnPlace", "Turn", "Turns"]
