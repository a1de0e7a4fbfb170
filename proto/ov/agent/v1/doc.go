// Package agentv1 is the API of ov-agent as protoc generates it from
// agent.proto, which describes it. Run make generate after a change there.
package agentv1
