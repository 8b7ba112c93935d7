import BrokerInterface
import Glibc
import Testing

@testable import ubd

@Suite("ubd mount")
struct MountTests {
    @Test("a mount point with odd characters is read as the kernel writes it")
    func escapes() {
        let text =
            "36 35 0:40 / /home/a/odd\\040\\134\\012x rw,nosuid shared:1 - fuse.ext4 /dev/ublkb0 rw,user_id=1000\nbroken\n"
        let mounts = MountedPlace.parse(Array(text.utf8))
        #expect(
            mounts == [
                MountedPlace(
                    point: Array("/home/a/odd \\\nx".utf8), type: "fuse.ext4", source: "/dev/ublkb0", user: 1000)
            ])
    }

    @Test("a file whose name ends like the mark gets no mark by ubd add")
    func mark() {
        #expect(MountMark.isOn(MountMark.marked("/a/b.img")))
        #expect(MountMark.removed(MountMark.marked("/a/b.img")) == "/a/b.img")
        #expect(!MountMark.isOn(MountMark.absent("x (ubd mount)")))
        #expect(MountMark.absent("x.img") == "x.img")
    }

    @Test("what blkid finds decides, and several file systems, a table alone and nothing are refused")
    func content() throws {
        #expect(try FoundContent.decide(FoundContent(export: "DEVNAME=x\nTYPE=ext4\n"), status: 0, "x") == "ext4")
        let table = #expect(throws: CommandFailure.self) {
            try FoundContent.decide(FoundContent(export: "PTTYPE=gpt\n"), status: 0, "x")
        }
        #expect(table?.remedy.contains("--partition") == true)
        for status: Int32 in [2, 4, 8, -1] {
            #expect(throws: CommandFailure.self) {
                try FoundContent.decide(FoundContent(export: "TYPE=ext4\n"), status: status, "x")
            }
        }
        #expect(throws: CommandFailure.self) { try FileSystemServer.serving("xfs", "x") }
    }

    @Test("a directory that answers is told from one whose server has ended, or is silent")
    func answers() throws {
        #expect(try MountAnswer.ask(Array("/tmp".utf8), Deadline(seconds: 10)) == .answers)
        #expect(try MountAnswer.ask(Array("/nowhere".utf8), Deadline(seconds: 10)) == .fails(errno: ENXIO))
        #expect(MountAnswer.verdict(.failed(step: "open", errno: ENOTCONN)) == .fails(errno: ENOTCONN))
        #expect(MountAnswer.verdict(.failed(step: "open", errno: EACCES)) == .answers)
        #expect(MountAnswer.verdict(.timedOut) == .hangs)
    }

    @Test("ubd umount succeeds only when no write to the device has failed, and its counts are known")
    func lostWrites() {
        func lost(_ counts: Counts?) -> CommandFailure? {
            MountEnd.lostWrites(counts, "mnt", "/dev/ubdb0", file: "disk.img", isMade: true)
        }
        let one = OperationCount(requests: 2, errors: 1)
        #expect(lost(Counts(read: one, discard: one)) == nil)
        for counts in [nil, Counts(write: one), Counts(flush: one), Counts(writeZeroes: one)] {
            let failure = lost(counts)
            #expect(failure?.status == .failed && failure?.message.contains("disk.img") == true)
        }
    }

    @Test("a program that closes its output and goes on is waited for until the deadline")
    func silentHelper() throws {
        let helper = try HelperProcess("/bin/sh", ["sh", "-c", "echo x; exec sleep 60 >&-"])
        #expect(try helper.output(most: 100, Deadline(seconds: 1)) == nil)
        let other = try HelperProcess("/bin/sh", ["sh", "-c", "echo x; exec >&-; sleep 0.2; exit 3"])
        let printed = try other.output(most: 100, Deadline(seconds: 60))
        #expect(printed?.text == "x\n" && printed?.status == 3)
    }
}
