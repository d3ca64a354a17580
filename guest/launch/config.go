package launch

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// userConfig names the file that QEMU reads by itself, where there is one, like a -readconfig.
func (m *mover) userConfig(words []word) []word {
	off := func(w word) bool { return w.option == "-no-user-config" || w.option == "-nodefconfig" }
	if slices.ContainsFunc(words, off) || m.ReadFile == nil {
		return words
	}
	if _, err := m.ReadFile(userConfig); err != nil {
		return words
	}
	m.note("-no-user-config", "", "-no-user-config", "what is in "+userConfig+" is among the options")
	return append([]word{
		{raw: "-no-user-config", option: "-no-user-config", flag: true},
		{raw: "-readconfig", option: "-readconfig", value: userConfig},
	}, words...)
}

// userConfig is where Debian's QEMU has it.
const userConfig = "/etc/qemu/qemu.conf"

// readConfigs puts the sections of -readconfig's files into the places of those options, so that they are options
// like others.
func (m *mover) readConfigs(words []word) (all []word) {
	for _, w := range words {
		if w.option != "-readconfig" {
			all = append(all, w)
			continue
		}
		if m.ReadFile == nil || isDescriptor("", w.value) {
			m.refuse(w.option, w.value, "the file cannot be read: write its sections as options")
			continue
		}
		b, err := m.ReadFile(w.value)
		if err != nil {
			m.refuse(w.option, w.value, err.Error()+": write its sections as options")
			continue
		}
		sections, err := parseConfig(b)
		if err != nil {
			m.refuse(w.option, w.value, err.Error())
			continue
		}
		var said []string
		for _, s := range sections {
			said = append(said, s.option+" "+s.value)
		}
		m.note(w.option, w.value, strings.Join(said, " "), "its sections are options")
		all = append(all, sections...)
	}
	return all
}

// The option of a section where it has another name. Source: util/qemu-config.c and the QemuOptsLists of 7.2 and 10.0.
var sectionOptions = map[string]string{"memory": "-m", "smp-opts": "-smp", "boot-opts": "-boot", "acpi": "-acpitable"}

// The sections that are read; those of others, such as [iscsi], cannot be written as options.
var sections = words(`accel acpi action add-fd audiodev boot-opts chardev device drive fsdev fw_cfg global icount
	machine memory mon msg name net netdev nic numa object option-rom overcommit plugin rtc run-with sandbox
	semihosting-config smbios smp-opts spice tpmdev trace virtfs vnc`)

var (
	header = regexp.MustCompile(`^\[([^\] "]+)(?: "([^"]*)")?\]$`)
	entry  = regexp.MustCompile(`^([^ =]+) = "([^"]*)"$`)
)

// parseConfig reads a file of -readconfig: [GROUP "ID"] and lines KEY = "VALUE".
func parseConfig(b []byte) (words []word, err error) {
	var o options
	end := func() {
		if len(words) > 0 {
			words[len(words)-1].value = o.String()
		}
		o = nil
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.Join(strings.Fields(lines.Text()), " ")
		if strings.Contains(line, `"`) { // blanks in a value stay
			line = strings.TrimSpace(lines.Text())
			line = regexp.MustCompile(`^(\S+)\s*=\s*"`).ReplaceAllString(line, `$1 = "`)
		}
		switch h, e := header.FindStringSubmatch(line), entry.FindStringSubmatch(line); {
		case line == "" || strings.HasPrefix(line, "#"):
		case h != nil:
			end()
			if !sections[h[1]] {
				return nil, fmt.Errorf("line %d: section %s is not known to us: write it as an option", n, line)
			}
			option := "-" + h[1]
			if name, ok := sectionOptions[h[1]]; ok {
				option = name
			}
			words = append(words, word{raw: option, option: option})
			if h[2] != "" {
				o = append(o, pair{key: "id", value: h[2]})
			}
		case e != nil && len(words) > 0:
			o = append(o, pair{key: e[1], value: e[2]})
		default:
			return nil, fmt.Errorf("line %d: %q is neither a section nor KEY = \"VALUE\"", n, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	end()
	return slices.DeleteFunc(words, func(w word) bool { return w.value == "" }), nil
}

// set carries out -set GROUP.ID.KEY=VALUE on the option that it is about.
func (m *mover) set(words []word) (all []word) {
	for _, w := range words {
		if w.option != "-set" {
			all = append(all, w)
			continue
		}
		name, value, ok := strings.Cut(w.value, "=")
		parts := strings.SplitN(name, ".", 3)
		i := slices.IndexFunc(all, func(a word) bool {
			return ok && len(parts) == 3 && a.option == "-"+parts[0] && parseOptions(a.value).get("id") == parts[1]
		})
		if i < 0 {
			m.refuse(w.option, w.value, "no option before it has this group and id: write the value there")
			continue
		}
		o := parseOptions(all[i].value)
		if o.get(parts[2]) != "" {
			o.set(parts[2], value)
		} else {
			o = append(o, pair{key: parts[2], value: value})
		}
		m.note(w.option, w.value, all[i].option+" "+o.String(), "it is part of that option")
		all[i].value = o.String()
	}
	return all
}
