"""The gateway: text in, ranked documents out.

A request passes four files: `http` (transport) -> `service` (one answer for all protocols) ->
`pairs` (text to token ids, batches across requests) -> `engines` (token ids to logits).
Beside them: `request` and `calls` (what is asked, and who asks), `models` (what is served), `residency` (which of
them are in memory), `cores` (what the tier `batch` may take), `accounts` (who may, and what it costs), `telemetry` and
`tls` (how it is run), `bundle` and `hub` (where models come from), `settings`, `errors`, `cli`.
"""
