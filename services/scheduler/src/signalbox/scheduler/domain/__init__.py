"""Pure decisions of the scheduler: policies, ranking, admission. No I/O."""
