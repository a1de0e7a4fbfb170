package server

import (
	"time"

	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// permission is what a caller needs for an RPC.
type permission byte

const (
	permOpen     permission = iota + 1 // nothing: it tells of no account
	permRead                           // an API key
	permWrite                          // an API key of scope write or admin
	permAdmin                          // an API key of scope admin
	permOperator                       // to reach the operator's socket
)

// rule is what the server does about one RPC.
type rule struct {
	permission permission
	timeout    time.Duration // for all of it
	body       int64         // what of a request is read, in bytes
}

const (
	// maxMessage bounds a message to the server, in bytes: a few records, or
	// some ten thousand ranges.
	maxMessage = 4 << 20
	// maxBody bounds a request of one message. Readers of larger ones read on to
	// the end, to say how large it was.
	maxBody = maxMessage + 4<<10
	// maxCommit bounds one commit, with 96 bytes for each op besides what it has
	// in it. Changing the account's key writes each secret's versions in one
	// commit, some 400 bytes for each of them.
	maxCommit = 256 << 20
)

// rules has every RPC. What is not in it is not served.
var rules = map[string]rule{
	vaultv1connect.VaultWhoAmIProcedure:       {permRead, 15 * time.Second, maxBody},
	vaultv1connect.VaultReadProcedure:         {permRead, 30 * time.Second, maxBody},
	vaultv1connect.VaultScanProcedure:         {permRead, time.Hour, maxBody},
	vaultv1connect.VaultCommitProcedure:       {permWrite, 10 * time.Minute, maxCommit},
	vaultv1connect.VaultCreateAPIKeyProcedure: {permAdmin, 30 * time.Second, maxBody},
	vaultv1connect.VaultListAPIKeysProcedure:  {permAdmin, 30 * time.Second, maxBody},
	vaultv1connect.VaultRevokeAPIKeyProcedure: {permAdmin, 30 * time.Second, maxBody},

	vaultv1connect.OperatorCreateAccountProcedure: {permOperator, 30 * time.Second, maxBody},
	vaultv1connect.OperatorListAccountsProcedure:  {permOperator, time.Minute, maxBody},
	vaultv1connect.OperatorCreateAPIKeyProcedure:  {permOperator, 30 * time.Second, maxBody},
	vaultv1connect.OperatorListAPIKeysProcedure:   {permOperator, 30 * time.Second, maxBody},
	vaultv1connect.OperatorRevokeAPIKeyProcedure:  {permOperator, 30 * time.Second, maxBody},

	"/grpc.health.v1.Health/Check": {permOpen, openTimeout, openBody},
	"/grpc.health.v1.Health/Watch": {permOpen, openTimeout, openBody},
	livez:                          {permOpen, openTimeout, openBody},
	readyz:                         {permOpen, openTimeout, openBody},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {permOpen, openTimeout, openBody},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {permOpen, openTimeout, openBody},
}

// What anybody may ask for takes little.
const (
	openTimeout = 5 * time.Second
	openBody    = 8 << 10
)
