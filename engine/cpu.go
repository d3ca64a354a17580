package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// CPU is the guest's first CPU.
type CPU struct {
	Type     string                // qemu64-x86_64-cpu
	Features map[FeatureWord]int64 // what the guest sees, after QEMU has taken out what host and accelerator lack; nil: not known
	Identity map[string]string     // vendor, family, model and stepping; nil: not read, see readIdentity

	path string // in QEMU's tree of objects
}

// FeatureWord is one register of CPUID that holds features. Source: qapi/machine-target.json, X86CPUFeatureWordInfo.
type FeatureWord struct {
	EAX, ECX int64
	Register string
}

// model is the CPU's model as -cpu names it.
func (c CPU) model() string { return strings.TrimSuffix(c.Type, "-x86_64-cpu") }

// sameModel tells whether two names are of one model: SPEC-v1 is SPEC to a machine type that defaults to it.
func (c CPU) sameModel(d CPU) bool {
	plain := func(name string) string {
		base, version, ok := strings.Cut(name, "-v")
		if ok && len(version) == 1 && version[0] >= '0' && version[0] <= '9' {
			return base
		}
		return name
	}
	return plain(c.model()) == plain(d.model())
}

// lacks are the features of c that d has not, by the names that -cpu takes.
func (c CPU) lacks(d CPU) (names []string) {
	if c.Features == nil || d.Features == nil {
		return nil
	}
	order := func(a, b FeatureWord) int {
		return strings.Compare(fmt.Sprintf("%08x %08x %s", a.EAX, a.ECX, a.Register), fmt.Sprintf("%08x %08x %s", b.EAX, b.ECX, b.Register))
	}
	for _, word := range slices.SortedFunc(maps.Keys(c.Features), order) {
		if word.EAX == 0xD && word.ECX == 0 {
			continue // the sizes of what XSAVE saves: they follow from the others
		}
		known := strings.Fields(featureNames[word])
		for bit := range 32 {
			switch {
			case word.EAX == 0x80000001 && word.Register == "EDX" && amdCopies>>bit&1 == 1:
			case c.Features[word]&^d.Features[word]>>bit&1 == 0:
			case bit < len(known) && known[bit] != "-":
				names = append(names, known[bit])
			default:
				names = append(names, fmt.Sprintf("CPUID[%Xh,%d].%s bit %d", word.EAX, word.ECX, word.Register, bit))
			}
		}
	}
	return slices.Compact(names)
}

// amdCopies are the bits of 80000001h EDX in which AMD's CPUs repeat those of 1h EDX. Source: AMD64 Architecture Programmer's Manual, volume 3.
const amdCopies = 0x0183f3ff

// compareCPU finds features that a running guest may be using and would lose. Nothing of the stream says which they were: QEMU loads
// it, and the guest dies of an invalid instruction some time later.
func compareCPU(src, dst *Facts, refuse, doubt func(problem, mend string)) {
	a, b := src.CPU, dst.CPU
	if lost := a.lacks(b); len(lost) > 0 {
		mend := fmt.Sprintf("start the destination with %s, on a host and an accelerator that can give them", a.option())
		if a.model() == "max" || a.model() == "host" {
			mend = fmt.Sprintf("-cpu %s is what a host, an accelerator and a version of QEMU can do: choose a "+
				"destination that can do these, or start the guest anew with a named model", a.model())
		}
		refuse("the destination's CPU lacks what the guest sees on the source: "+list(lost), mend)
	}
	if gained := b.lacks(a); len(gained) > 0 {
		doubt("the destination's CPU has what the guest does not see on the source: "+list(gained),
			fmt.Sprintf("the guest may find it after its next start; %s on the destination avoids it", a.option()))
	}
	differ := ""
	for _, name := range slices.Sorted(maps.Keys(a.Identity)) {
		if there, ok := b.Identity[name]; ok && there != a.Identity[name] {
			differ += fmt.Sprintf(", %s %s and %s", name, a.Identity[name], there)
		}
	}
	switch {
	case differ != "":
		refuse(fmt.Sprintf("CPU models differ: source %s, destination %s%s", a.model(), b.model(), differ),
			"start the destination with "+a.option())
	case !a.sameModel(b) && a.Type != "" && b.Type != "":
		doubt(fmt.Sprintf("CPU models differ: source %s, destination %s", a.model(), b.model()),
			"start the destination with "+a.option())
	}
	if src.Accelerator != dst.Accelerator {
		doubt(fmt.Sprintf("accelerators differ: source %s, destination %s: QEMU's own tests have no such pair",
			src.Accelerator, dst.Accelerator),
			fmt.Sprintf("start the destination with -accel %s if its host can do that", src.Accelerator))
	}
}

// option is how a destination gets this CPU.
func (c CPU) option() string {
	if c.model() == "" {
		return "the source's -cpu"
	}
	return "the source's -cpu (model " + c.model() + " and the same flags)"
}

// list is names in one line: the first of many.
func list(names []string) string {
	const most = 12
	if len(names) > most+1 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// featureNames names the bits of a word from bit 0 on; "-" has no name. Found by switching on each property of a CPU by itself, on
// 7.2.22 and 10.0.2, and looking which bit it sets (feature-words, filtered-features); those of 40000001h are arch/x86/include/uapi/asm/kvm_para.h's.
var featureNames = map[FeatureWord]string{
	{0x1, 0, "ECX"}:        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca sse4-1 sse4-2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
	{0x1, 0, "EDX"}:        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
	{0x6, 0, "EAX"}:        "- - arat",
	{0x7, 0, "EBX"}:        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - zero-fcs-fds mpx - avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
	{0x7, 0, "ECX"}:        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
	{0x7, 0, "EDX"}:        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capability ssbd",
	{0x7, 1, "EAX"}:        "sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 - avx-ifma - - lam",
	{0x7, 1, "EDX"}:        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti - - - - avx10",
	{0x7, 2, "EDX"}:        "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
	{0xD, 1, "EAX"}:        "xsaveopt xsavec xgetbv1 xsaves xfd",
	{0x12, 0, "EAX"}:       "sgx1 sgx2 - - - - - - - - - sgx-edeccssa",
	{0x12, 0, "EBX"}:       "sgx-exinfo",
	{0x12, 1, "EAX"}:       "- sgx-debug sgx-mode64 - sgx-provisionkey sgx-tokenkey - sgx-kss - - sgx-aex-notify",
	{0x14, 0, "ECX"}:       "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - intel-pt-lip",
	{0x24, 0, "EBX"}:       "- - - - - - - - - - - - - - - - avx10-128 avx10-256 avx10-512",
	{0x40000001, 0, "EAX"}: "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush - kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit",
	{0x40000001, 0, "EDX"}: "kvm-hint-dedicated",
	{0x80000001, 0, "ECX"}: "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
	{0x80000001, 0, "EDX"}: "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
	{0x80000007, 0, "EBX"}: "overflow-recov succor",
	{0x80000007, 0, "EDX"}: "- - - - - - - - invtsc",
	{0x80000008, 0, "EBX"}: "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - - - - amd-ssbd virt-ssbd amd-no-ssb - amd-psfd",
	{0x8000000A, 0, "EDX"}: "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif - - - - - - - - vnmi - - svme-addr-chk",
	{0x80000021, 0, "EAX"}: "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs - - - - - - - - - - - - - - - eraps - - sbpb ibpb-brtype srso-no srso-user-kernel-no",
	{0x80000022, 0, "EAX"}: "perfmon-v2",
	{0xC0000001, 0, "EDX"}: "- - xstore xstore-en - - xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
}
