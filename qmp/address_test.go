package qmp_test

import (
	"encoding/json"
	"testing"

	"qmigrate/qmp"
)

func TestAddress(t *testing.T) {
	for uri, want := range map[string]string{
		"tcp:[::1]:4444":  `{"host":"::1","port":"4444","transport":"socket","type":"inet"}`,
		"unix:/run/m":     `{"path":"/run/m","transport":"socket","type":"unix"}`,
		"vsock:3:9000":    `{"cid":"3","port":"9000","transport":"socket","type":"vsock"}`,
		"fd:m":            `{"str":"m","transport":"socket","type":"fd"}`,
		"exec:cat a:b,c":  `{"args":["/bin/sh","-c","cat a:b,c"],"transport":"exec"}`,
		"file:/a,offset=": `{"filename":"/a,offset=","offset":0,"transport":"file"}`,
	} {
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(a.Channels())
		if got := `{"channels":[{"addr":` + want + `,"channel-type":"main"}]}`; err != nil || string(b) != got {
			t.Errorf("%s: %s, %v; want %s", uri, b, err, got)
		}
	}
	for _, uri := range []string{"", "tcp", "tcp:", "tcp:h", "tcp:h:", "rdma:h:1", "unix:"} {
		if a, err := qmp.ParseAddress(uri); err == nil || a != (qmp.Address{}) {
			t.Errorf("%q: %+v, %v", uri, a, err)
		}
	}
}
