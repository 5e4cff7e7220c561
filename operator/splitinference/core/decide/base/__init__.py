"""What deciding is made of: policy, reasons to plan again, comparison of plans, the decision."""
