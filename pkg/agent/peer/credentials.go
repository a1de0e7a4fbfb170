package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// localSecurity is the level that gRPC gives a Unix socket: what crosses it
// never leaves the kernel.
const localSecurity = credentials.PrivacyAndIntegrity

// ServerCredentials returns the agent's side: each connection's AuthInfo is the
// *Info of its caller. It takes only connections that Limit has accepted, which
// is where callers are identified and strangers are turned away.
func ServerCredentials() credentials.TransportCredentials { return creds{server: true} }

// ClientCredentials returns the client's side: a server that is not one of
// trust is refused with an *Untrusted. The AuthInfo is a ServerInfo.
func ClientCredentials(trust Trust) credentials.TransportCredentials {
	return creds{trust: trust}
}

// ServerInfo is what a client knows about the agent.
type ServerInfo struct {
	credentials.CommonAuthInfo
	// UID is the effective uid of the process that called listen(2): the agent,
	// or the systemd that passed it the socket.
	UID uint32
}

// AuthType returns "peer".
func (ServerInfo) AuthType() string { return "peer" }

// Untrusted says that the process that listens on a socket runs as an account
// that the client does not trust with what it is about to send.
type Untrusted struct {
	Socket string
	UID    uint32
}

func (e *Untrusted) Error() string {
	return fmt.Sprintf("what listens on %s runs as %s, who is not trusted with secrets here", quote(e.Socket), account(e.UID))
}

// Temporary is false: gRPC must not try again.
func (*Untrusted) Temporary() bool { return false }

type creds struct {
	server bool
	trust  Trust // the client's
}

var errSide = errors.New("peer credentials of one side are used on the other")

// ServerHandshake passes on who Limit found the caller to be. It reads and
// writes nothing.
func (c creds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if !c.server {
		return nil, nil, errSide
	}
	known, ok := raw.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("cannot tell who connected over %T: not accepted by peer.Limit", raw)
	}
	return known, known.info, nil
}

// ClientHandshake checks who listens. It reads and writes nothing.
func (c creds) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c.server {
		return nil, nil, errSide
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	uid, err := c.checkServer(raw)
	if err != nil {
		return nil, nil, err
	}
	info := ServerInfo{UID: uid}
	info.SecurityLevel = localSecurity
	return raw, info, nil
}

func (c creds) checkServer(raw net.Conn) (uid uint32, err error) {
	uc, ok := raw.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("cannot tell who listens over %T: not a Unix socket", raw)
	}
	info, err := credentialsOf(uc)
	if err != nil {
		return 0, err
	}
	if !c.trust.Has(info.UID) {
		return info.UID, &Untrusted{Socket: uc.RemoteAddr().String(), UID: info.UID}
	}
	return info.UID, nil
}

func (creds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peer"}
}

func (c creds) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: a Unix socket's server has no name.
func (creds) OverrideServerName(string) error { return nil }

// conn is an accepted connection and its caller, who is let go of with it.
type conn struct {
	net.Conn
	info   *Info
	limit  *limiter
	keys   keys
	closed sync.Once
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.closed.Do(func() {
		c.info.close()
		c.limit.remove(c)
	})
	return err
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.info.use.touch()
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if n > 0 {
		c.info.use.touch()
	}
	return n, err
}
