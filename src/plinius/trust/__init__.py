"""What an owner authorises, and how it is proved.

`signing` holds the keys that jobs are signed with; `job` says what a job is, `job_text` reads and
writes its text, `job_file` signs and verifies it; `permit` checks a command against a job;
`declassification` counts the bits that a job lets leave.
"""
