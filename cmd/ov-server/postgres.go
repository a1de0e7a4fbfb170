package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/store"
)

func openPostgres(context.Context, string) (store.Accounts, error) { return nil, errors.New("no PostgreSQL yet") }
func migrate(*cobra.Command, string, bool) error                    { return nil }
