// Mcpecho is the barest server of the MCP SDK: one tool that says what it was
// told. With "run" as argument the tool runs /bin/true first.
package main

import (
	"context"
	"log"
	"os"
	"os/exec"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type message struct {
	Text string `json:"text"`
}

func main() {
	runs := len(os.Args) > 1 && os.Args[1] == "run"
	server := mcp.NewServer(&mcp.Implementation{Name: "echo", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "echo"}, func(_ context.Context, _ *mcp.CallToolRequest, in message) (*mcp.CallToolResult, message, error) {
		if runs {
			if err := exec.Command("/bin/true").Run(); err != nil {
				return nil, message{}, err
			}
		}
		return nil, in, nil
	})
	if err := server.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}
