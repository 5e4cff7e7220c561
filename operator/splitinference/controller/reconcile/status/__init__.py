"""What a pass says: status, conditions, events, offers, and whether a move paid."""
