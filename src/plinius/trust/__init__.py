"""What an owner authorises, how a trainer proves what it is, and who gives it the keys.

`signing`, `job*`, `permit`, `declassification`: signed jobs, and what they let leave (see
docs/formats/job.md). `evidence`, `attesters`, `verify`, `policy`, `broker`, `ledger`, `trainer`:
keys for an attested trainer only, and an anchor against rollback (see docs/trust.md).
"""
