"""The cases for drivers, a file for each area; `virtq.check.cases` finds them."""
