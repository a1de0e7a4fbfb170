// Package options holds what ov tells ov-mcp. It is apart from package mcp so
// that ov links no MCP.
package options

import (
	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/config"
)

// Program is the name of the program that takes these options.
const Program = "ov-mcp"

// Serve is the command line of `ov mcp serve`.
type Serve struct {
	access.Place
	MachineKey string         `json:"machine_key,omitempty"` // file; "": the agent
	App        string         `json:"app,omitempty"`
	Env        string         `json:"env,omitempty"`
	Approve    config.Approve `json:"approve,omitempty"` // "": as config.toml says
	// Reaper makes the program the one that ends the children of a server which
	// died.
	Reaper bool `json:"reaper,omitempty"`
}
