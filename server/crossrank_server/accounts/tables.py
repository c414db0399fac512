"""The tables of keys, credit and usage; the same in SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, Float, Integer, MetaData, String, Table

SCHEMA_VERSION = 1

tables = MetaData()
schema = Table("crossrank_schema", tables, Column("version", Integer, primary_key=True))

keys = Table(
    "crossrank_keys",
    tables,
    Column("id", String, primary_key=True),
    Column("secret_sha256", String, nullable=False),
    Column("name", String, nullable=False),
    Column("scopes", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("requests_per_minute", BigInteger),
    Column("documents_per_minute", BigInteger),
)

# Updated by every admission, one row a key. Money in nano-dollars. A NULL balance: the key is not prepaid.
# granted = spent + balance + the holds of all gateways.
allowances = Table(
    "crossrank_allowances",
    tables,
    Column("key_id", String, primary_key=True),
    Column("granted", BigInteger, nullable=False, default=0),
    Column("spent", BigInteger, nullable=False, default=0),
    Column("balance", BigInteger),
    Column("window", BigInteger, nullable=False, default=0),
    Column("requests", BigInteger, nullable=False, default=0),
    Column("documents", BigInteger, nullable=False, default=0),
    Column("previous_requests", BigInteger, nullable=False, default=0),
    Column("previous_documents", BigInteger, nullable=False, default=0),
)

# Credit that a gateway took out of a balance for requests under way, as long as the gateway's lease lasts.
holds = Table(
    "crossrank_holds",
    tables,
    Column("gateway_id", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("held", BigInteger, nullable=False),
)
gateways = Table(
    "crossrank_gateways",
    tables,
    Column("id", String, primary_key=True),
    Column("lease_until", Float, nullable=False),
    Column("last_batch", BigInteger, nullable=False),
)

usage = Table(
    "crossrank_usage",
    tables,
    Column("key_id", String, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("model", String, primary_key=True),
    Column("tier", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("documents", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
)
