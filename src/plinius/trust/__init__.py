"""What an owner authorises, and how it is proved.

`signing` holds the keys that jobs are signed with; `job` the job and its file; `permit` checks a
command against a job; `declassification` counts the bits that a job lets leave.
"""
