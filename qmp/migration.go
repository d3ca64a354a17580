package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"
)

// Fields is a set of MigrationInfo's fields.
type Fields uint64

// The fields of a MigrationInfo that QEMU may leave out.
const (
	FieldStatus Fields = 1 << iota
	FieldTotalTime
	FieldSetupTime
	FieldDowntime
	FieldExpectedDowntime
	FieldTransferred
	FieldRemaining
	FieldTotal
	FieldNormalBytes
	FieldPostcopyBytes
	FieldMultifdBytes
	FieldPrecopyBytes
	FieldDowntimeBytes
	FieldNormal
	FieldDuplicate
	FieldDirtyPagesRate
	FieldPagesPerSecond
	FieldDirtySyncCount
	FieldPageSize
	FieldPostcopyRequests
	FieldThroughput
	FieldThrottlePercent
	FieldPostcopyBlocktime
	FieldErrorDesc
	FieldBlockedReasons
	FieldSocketAddress
)

// fieldsRAM are those that QEMU has in the section "ram".
const fieldsRAM = FieldTransferred | FieldRemaining | FieldTotal | FieldNormalBytes | FieldPostcopyBytes |
	FieldMultifdBytes |
	FieldPrecopyBytes | FieldDowntimeBytes | FieldNormal | FieldDuplicate | FieldDirtyPagesRate | FieldPagesPerSecond |
	FieldDirtySyncCount | FieldPageSize | FieldPostcopyRequests | FieldThroughput

// Contains says whether all of g are in f.
func (f Fields) Contains(g Fields) bool { return f&g == g }

// MigrationInfo is one answer to query-migrate. Has says which fields were in it: absent is not zero. A field of an
// unexpected type counts as absent, so that no newer QEMU is fatal.
// Source: qapi/migration.json, MigrationInfo and MigrationStats; seen on 7.2.22, 10.0.2.
type MigrationInfo struct {
	Has Fields
	// none, setup, active, device, completed, failed, ...; an unknown one is kept; absent before the first migration
	Status string

	TotalTime         time.Duration // QEMU: ms. So far, or of the whole when completed
	SetupTime         time.Duration // QEMU: ms, by the wall clock
	Downtime          time.Duration // QEMU: ms. Only when completed; the first such answer may still say 0
	ExpectedDowntime  time.Duration // QEMU: ms. While active, renewed each 100 ms
	PostcopyBlocktime time.Duration // QEMU: ms. Destination, with the capability postcopy-blocktime

	Transferred   int64 // bytes on the wire
	Remaining     int64 // bytes
	Total         int64 // bytes of guest memory
	NormalBytes   int64 // bytes of pages sent whole
	PostcopyBytes int64 // bytes sent after the switch to post-copy
	MultifdBytes  int64 // bytes sent through multifd channels
	PrecopyBytes  int64 // bytes sent while the guest ran on the source
	DowntimeBytes int64 // bytes sent while it ran nowhere

	Normal           int64   // pages sent whole
	Duplicate        int64   // pages sent as one byte, for they held nothing else (zeros)
	DirtyPagesRate   int64   // pages/s, renewed at a sync more than 1 s after the last
	PagesPerSecond   int64   // pages/s sent
	DirtySyncCount   int64   // bitmap syncs, as this QEMU counts them
	PageSize         int64   // bytes
	PostcopyRequests int64   // page requests from the destination
	Throughput       float64 // bytes/s; QEMU: mbps, 10^6 bits/s
	ThrottlePercent  int64   // of CPU time taken from the guest by auto-converge

	ErrorDesc      string          // why it failed
	BlockedReasons []string        // why QEMU would refuse to migrate now
	SocketAddress  []SocketAddress // where a destination listens
}

// SocketAddress is where an incoming QEMU listens. Source: qapi/sockets.json.
type SocketAddress struct {
	Type string `json:"type"` // inet, unix, vsock, fd
	Host string `json:"host"`
	Port string `json:"port"`
	Path string `json:"path"` // unix
	CID  string `json:"cid"`  // vsock
	Str  string `json:"str"`  // fd
}

// migrationReply is a MigrationInfo as a reply to Execute.
type migrationReply struct{ info MigrationInfo }

func (r *migrationReply) UnmarshalJSON(b []byte) error {
	var d migrationDecoder
	return d.decode(b, &r.info)
}

var errNotMigrationInfo = errors.New("not an answer to query-migrate")

// migrationDecoder remembers what it has already made of strings and lists, so that the same answer costs nothing
// twice.
type migrationDecoder struct {
	unknown   map[string]string // statuses that are not in statusName
	desc      string
	rawDesc   []byte
	blocked   []string
	rawBlock  []byte
	address   []SocketAddress
	rawSocket []byte
}

// decode overwrites m with the answer b, the JSON text of an object; on an error m is zero.
func (d *migrationDecoder) decode(b []byte, m *MigrationInfo) error {
	*m = MigrationInfo{}
	s := scanner{b: b}
	if !s.take('{') {
		return errNotMigrationInfo
	}
	for again := !s.take('}'); again; {
		var key, v []byte
		var ok bool
		if key, v, again, ok = s.member(); !ok {
			*m = MigrationInfo{}
			return errNotMigrationInfo
		}
		switch string(key) {
		case "status":
			m.mark(FieldStatus, v[0] == '"')
			m.Status = d.status(v)
		case "total-time":
			m.milliseconds(&m.TotalTime, FieldTotalTime, v)
		case "setup-time":
			m.milliseconds(&m.SetupTime, FieldSetupTime, v)
		case "downtime":
			m.milliseconds(&m.Downtime, FieldDowntime, v)
		case "expected-downtime":
			m.milliseconds(&m.ExpectedDowntime, FieldExpectedDowntime, v)
		case "postcopy-blocktime":
			m.milliseconds(&m.PostcopyBlocktime, FieldPostcopyBlocktime, v)
		case "cpu-throttle-percentage":
			m.integer(&m.ThrottlePercent, FieldThrottlePercent, v)
		case "error-desc":
			if !bytes.Equal(v, d.rawDesc) {
				d.desc = ""
				d.rawDesc = remember(v, &d.desc)
			}
			m.ErrorDesc = d.desc
			m.mark(FieldErrorDesc, d.rawDesc != nil)
		case "blocked-reasons":
			if !bytes.Equal(v, d.rawBlock) {
				d.blocked = nil
				d.rawBlock = remember(v, &d.blocked)
			}
			m.BlockedReasons = d.blocked
			m.mark(FieldBlockedReasons, d.rawBlock != nil)
		case "socket-address":
			if !bytes.Equal(v, d.rawSocket) {
				d.address = nil
				d.rawSocket = remember(v, &d.address)
			}
			m.SocketAddress = d.address
			m.mark(FieldSocketAddress, d.rawSocket != nil)
		case "ram":
			m.ram(v)
		}
	}
	if !s.end() {
		*m = MigrationInfo{}
		return errNotMigrationInfo
	}
	return nil
}

// remember unmarshals raw into v and returns a copy of raw; nil, and v unset, if it has another type.
func remember[T any](raw []byte, v *T) []byte {
	var t *T
	if json.Unmarshal(raw, &t) != nil || t == nil {
		return nil
	}
	*v = *t
	return bytes.Clone(raw)
}

// ram reads the section "ram", a valid JSON value.
func (m *MigrationInfo) ram(b []byte) {
	*m = m.withoutRAM()
	s := scanner{b: b}
	if !s.take('{') {
		return
	}
	for again := !s.take('}'); again; {
		var key, v []byte
		key, v, again, _ = s.member()
		switch string(key) {
		case "transferred":
			m.integer(&m.Transferred, FieldTransferred, v)
		case "remaining":
			m.integer(&m.Remaining, FieldRemaining, v)
		case "total":
			m.integer(&m.Total, FieldTotal, v)
		case "normal-bytes":
			m.integer(&m.NormalBytes, FieldNormalBytes, v)
		case "postcopy-bytes":
			m.integer(&m.PostcopyBytes, FieldPostcopyBytes, v)
		case "multifd-bytes":
			m.integer(&m.MultifdBytes, FieldMultifdBytes, v)
		case "precopy-bytes":
			m.integer(&m.PrecopyBytes, FieldPrecopyBytes, v)
		case "downtime-bytes":
			m.integer(&m.DowntimeBytes, FieldDowntimeBytes, v)
		case "normal":
			m.integer(&m.Normal, FieldNormal, v)
		case "duplicate":
			m.integer(&m.Duplicate, FieldDuplicate, v)
		case "dirty-pages-rate":
			m.integer(&m.DirtyPagesRate, FieldDirtyPagesRate, v)
		case "pages-per-second":
			m.integer(&m.PagesPerSecond, FieldPagesPerSecond, v)
		case "dirty-sync-count":
			m.integer(&m.DirtySyncCount, FieldDirtySyncCount, v)
		case "page-size":
			m.integer(&m.PageSize, FieldPageSize, v)
		case "postcopy-requests":
			m.integer(&m.PostcopyRequests, FieldPostcopyRequests, v)
		case "mbps":
			var f float64
			var err = strconv.ErrSyntax
			if c := v[0]; c == '-' || '0' <= c && c <= '9' {
				f, err = strconv.ParseFloat(string(v), 64)
			}
			if err != nil {
				f = 0
			}
			m.Throughput = f * 1e6 / 8
			m.mark(FieldThroughput, err == nil)
		}
	}
}

// withoutRAM forgets an earlier section "ram": of two with one name the last one counts.
func (m *MigrationInfo) withoutRAM() MigrationInfo {
	if m.Has&fieldsRAM == 0 {
		return *m
	}
	return MigrationInfo{
		Has: m.Has &^ fieldsRAM, Status: m.Status, TotalTime: m.TotalTime, SetupTime: m.SetupTime, Downtime: m.Downtime,
		ExpectedDowntime: m.ExpectedDowntime, PostcopyBlocktime: m.PostcopyBlocktime, ThrottlePercent: m.ThrottlePercent,
		ErrorDesc: m.ErrorDesc, BlockedReasons: m.BlockedReasons, SocketAddress: m.SocketAddress,
	}
}

func (m *MigrationInfo) mark(f Fields, has bool) {
	m.Has &^= f
	if has {
		m.Has |= f
	}
}

func (m *MigrationInfo) integer(to *int64, f Fields, v []byte) {
	n, ok := integer(v)
	*to = n
	m.mark(f, ok)
}

// milliseconds converts QEMU's ms; what no Duration can hold (292 years) counts as the longest.
func (m *MigrationInfo) milliseconds(to *time.Duration, f Fields, v []byte) {
	n, ok := integer(v)
	const most = int64(math.MaxInt64 / time.Millisecond)
	*to = time.Duration(max(-most, min(n, most))) * time.Millisecond
	m.mark(f, ok)
}

// status is the text of a JSON string, without allocating for those that have been seen; "" if v is not a string.
func (d *migrationDecoder) status(v []byte) string {
	if v[0] != '"' {
		return ""
	}
	s := scanner{b: v}
	text, _ := s.str()
	if name := statusName(text); name != "" {
		return name
	}
	if name, ok := d.unknown[string(text)]; ok {
		return name
	}
	var name string
	if json.Unmarshal(v, &name) != nil {
		return ""
	}
	if d.unknown == nil {
		d.unknown = make(map[string]string)
	}
	if len(d.unknown) < 64 { // a peer that invents names is not remembered for ever
		d.unknown[string(text)] = name
	}
	return name
}

// statusName is the constant for a status of QEMU 7.2 to 11.1, or "".
func statusName(b []byte) string {
	for _, name := range [...]string{
		"active", "device", "setup", "completed", "none", "pre-switchover", "postcopy-active", "cancelling", "cancelled",
		"failed", "failing", "postcopy-paused", "postcopy-recover", "postcopy-recover-setup", "postcopy-device", "colo",
		"wait-unplug",
	} {
		if string(b) == name {
			return name
		}
	}
	return ""
}
