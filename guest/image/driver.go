package image

import (
	"qmigrate/guest"
	"qmigrate/guest/debian"
)

// drivers are what a guest's kernel needs for a piece of its hardware.
type drivers struct {
	modules []string    // the kernel's
	kernel  debian.What // Debian's kernel that has them
}

// nicDrivers are those for network cards, by the card's name.
func nicDrivers() map[string]drivers {
	return map[string]drivers{
		guest.VirtioNet: {[]string{"virtio_net"}, debian.Kernel},
		"e1000":         {[]string{"e1000"}, debian.Generic},
		"e1000e":        {[]string{"e1000e"}, debian.Generic},
		"vmxnet3":       {[]string{"vmxnet3"}, debian.Kernel},
	}
}

// busDrivers are those for disk buses.
func busDrivers() map[string]drivers {
	return map[string]drivers{
		guest.VirtioBlk:  {[]string{"virtio_blk"}, debian.Kernel},
		guest.VirtioSCSI: {[]string{"virtio_scsi", "sd_mod"}, debian.Kernel},
		guest.AHCI:       {[]string{"ahci", "sd_mod"}, debian.Generic},
	}
}

// debianKernel is the Debian kernel that an image with this hardware is made from.
func (s Spec) debianKernel() (debian.What, error) {
	nic, bus, err := s.drivers()
	if nic.kernel == debian.Generic || bus.kernel == debian.Generic {
		return debian.Generic, err
	}
	return debian.Kernel, err
}

func (s Spec) drivers() (nic, bus drivers, err error) {
	if err = guest.CheckNIC(s.NIC); err == nil {
		err = guest.CheckDiskBus(s.DiskBus)
	}
	return nicDrivers()[guest.NICName(s.NIC)], busDrivers()[guest.DiskBusName(s.DiskBus)], err
}
