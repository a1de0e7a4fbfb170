-- +goose Up
CREATE TABLE ov_accounts (
    account bytea NOT NULL,
    name text NOT NULL,
    created timestamptz NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account)
);

CREATE TABLE ov_records (
    account bytea NOT NULL,
    key bytea NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (account, key)
);

-- +goose Down
DROP TABLE ov_records;
DROP TABLE ov_accounts;
