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
}
