// Package endpoint is one QEMU as the engine sees it: how to reach its monitors, and what its host can do for it. It
// knows no addresses and starts nothing: package engine/connect makes an Endpoint from words. It imports qmp alone.
package endpoint
