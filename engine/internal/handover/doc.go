// Package handover is a model of the hand-over of a guest: both QEMUs by the rules of their sources (7.2, 10.0,
// 11.1), the stream between them, the monitors, qmigrate with its undo and its `--recover`, and an adversary that
// breaks things. Explore visits every interleaving within the budgets of a Config, and checks what decision 2
// promises: never two that run the guest, never silently none, the record true, no wait without an end.
//
// It is not a simulation of time or of memory: a stage takes as long as it takes, and memory is three words (none, a
// part, all). It is not a test of the engine's code either: qmigrate's forward path, and how it carries out
// steps, are written again here, small. What the two share is the decision: the model calls holder.Decide and
// holder.MayRun.
//
// Nobody imports it. Its tests run it.
//
// What the QEMUs do was read in migration.c, savevm.c, cpus.c and qmp-cmds.c of 7.2, 10.0.2 and about 11.0.
// Simplified:
//
//   - A stretch of QEMU's code under the big lock that sends one thing is one step. Meanwhile no command is taken.
//   - One query answers for the run state and the migration of a side at one instant. First the source is asked, then
//     the destination, each over the connection on which its events come, so these come first.
//   - A connection that is lost with notice may deliver what was written before: all of it, or nothing.
//   - A limit of ours runs out where no QEMU can do anything any more, but for its own limits of minutes (TCP's). Where
//     one still can, the limit that runs out is a fault of the budget: a QEMU that was too slow.
//   - Multifd, preempt, COLO, files, mirrors of disks, guests that reset and snapshots are not there.
//   - An attempt to connect again in post-copy may fail or succeed, whatever became of the route before.
//   - A 7.2 that loses the link again in the handshake of a recovery stays in postcopy-recover (its destination may
//     crash instead).
//   - What a third party has stopped is not asked who runs it in the end.
package handover
