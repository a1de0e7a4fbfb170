package witness
import ("testing";"os";"fmt";"github.com/opaquevault/ov/pkg/vault")
func TestZZ(t *testing.T){
 os.MkdirAll("testdata/fuzz/FuzzFile",0o755)
 w:=func(n string,b []byte, m bool){ h:=""; for _,c:=range b { h+=fmt.Sprintf("\\x%02x",c)}; os.WriteFile("testdata/fuzz/FuzzFile/"+n,[]byte(fmt.Sprintf("go test fuzz v1\n[]byte(\"%s\")\nbool(%v)\n",h,m)),0o644)}
 s:=&vault.Seen{}; fill(s,3); b:=encode(s)
 w("file",b,false); w("body",b[:len(b)-32],true); w("short",b[:60],true); w("none",nil,true)
 e:=encode(&vault.Seen{}); w("empty",e[:len(e)-32],true)
 envOf(s); s.Apps["b"].Envs["x"].Created=at; x:=encode(s); x=x[:len(x)-32]; x[len(x)-1]=1; w("secrets",x,true)
}
