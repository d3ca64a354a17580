package facts

import "strings"

// CPU is the guest's first CPU.
type CPU struct {
	Type string // qemu64-x86_64-cpu
	// what the guest sees, after QEMU has taken out what host and accelerator lack; nil: not known
	Features map[FeatureWord]int64
	Identity map[string]string // vendor, family, model and stepping; nil: not read, see readIdentity

	path string // in QEMU's tree of objects
}

// FeatureWord is one register of CPUID that holds features. Source: qapi/machine-target.json, X86CPUFeatureWordInfo.
type FeatureWord struct {
	EAX, ECX int64
	Register string
}

// Model is the CPU's model as -cpu names it.
func (c CPU) Model() string { return strings.TrimSuffix(c.Type, "-x86_64-cpu") }
