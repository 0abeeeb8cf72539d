"""The cases for devices, a file for each area; `virtq.check.cases` finds them."""
