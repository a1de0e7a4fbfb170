package agent

import (
	"fmt"

	"github.com/opaquevault/ov/pkg/agent/peer"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// permission is what a caller needs for an RPC.
type permission byte

const (
	permStatus  permission = iota + 1 // see that the agent runs and what it opens
	permControl                       // unlock, lock, stop
	permUse                           // read names and values
	permWrite                         // change secrets, apps, envs
)

// rule is what the agent does about one RPC.
type rule struct {
	permission permission
	// releases: the answer tells of names or values, so the caller is looked at
	// again right before it goes out.
	releases bool
	// quiet: it does not count as use of the agent, which puts --idle off.
	quiet bool
}

// rules has every RPC. What is not in it is refused.
var rules = map[string]rule{
	agentv1.Agent_Hello_FullMethodName:     {permission: permStatus, quiet: true},
	agentv1.Agent_Status_FullMethodName:    {permission: permStatus, quiet: true},
	agentv1.Agent_Unlock_FullMethodName:    {permission: permControl},
	agentv1.Agent_Lock_FullMethodName:      {permission: permControl},
	agentv1.Agent_Stop_FullMethodName:      {permission: permControl},
	agentv1.Agent_ListApps_FullMethodName:  {permission: permUse},
	agentv1.Agent_CreateApp_FullMethodName: {permission: permWrite},
	agentv1.Agent_DeleteApp_FullMethodName: {permission: permWrite},
	agentv1.Agent_CreateEnv_FullMethodName: {permission: permWrite},
	agentv1.Agent_DeleteEnv_FullMethodName: {permission: permWrite},
	agentv1.Agent_Reveal_FullMethodName:    {permission: permUse, releases: true},
	agentv1.Agent_List_FullMethodName:      {permission: permUse, releases: true},
	agentv1.Agent_History_FullMethodName:   {permission: permUse, releases: true},
	agentv1.Agent_Put_FullMethodName:       {permission: permWrite, releases: true},
	agentv1.Agent_Delete_FullMethodName:    {permission: permWrite},
	agentv1.Agent_Rollback_FullMethodName:  {permission: permWrite, releases: true},
}

// authorize decides whether the caller has the permission. Until there are
// policies, the agent's own account and root have all of them.
func authorize(trust peer.Trust, caller *peer.Info, method string) (rule, error) {
	r, ok := rules[method]
	if !ok {
		return rule{}, fmt.Errorf("%w: %s is not a call of this agent", ErrDenied, method)
	}
	if !trust.Has(caller.UID) {
		return rule{}, fmt.Errorf("%w: the agent serves its own account and root, not uid %d", ErrDenied, caller.UID)
	}
	return r, nil
}
