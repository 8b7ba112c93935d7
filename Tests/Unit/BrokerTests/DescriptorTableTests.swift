import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("A worker's descriptors")
struct DescriptorTableTests {
    private let table = DescriptorTable(number: 7, files: 1...2, workerEnd: 30, parking: 50, brokerEnd: 60)

    private func entry(_ link: String?, _ access: String = "rw") -> DescriptorTable.Entry {
        DescriptorTable.Entry(link: link, isReadable: access.contains("r"), isWritable: access.contains("w"))
    }

    private var good: [Int32: DescriptorTable.Entry] {
        [
            0: entry("/zero", "r"), 1: entry("/null"), 2: entry("/null"), 3: entry("socket:[30]"), 4: entry("/ublkc7"),
            5: entry("socket:[50]"), 6: entry("socket:[60]"), 7: entry("/memfd:ubd-statistics (deleted)"),
            8: entry("/home/alice/disk.img"), 9: entry("/home/alice/disk.img"),
        ]
    }

    @Test("are the documented ones, wherever the host has its /dev, and whatever the file is called")
    func documented() {
        #expect(table.problem(in: good) == nil)
        var other = good
        other[0] = entry("/dev/zero", "r")
        other[1] = entry("/")
        other[4] = entry("/dev/ublkc7")
        other[9] = nil
        #expect(table.problem(in: other) == nil)
        // A path that is too long to report; a deleted one; a memfd; a read-only one.
        for link in [nil, "/home/alice/disk (deleted)", "/memfd:disk (deleted)"] {
            other[8] = entry(link, "r")
            #expect(table.problem(in: other) == nil)
        }
    }

    @Test("of a device of connections are as many sockets as it has queues, none of them the broker's, and no file")
    func sockets() {
        let table = DescriptorTable(
            number: 7, files: 2...2, areSockets: true, workerEnd: 30, parking: 50, brokerEnd: 60)
        var found = good
        #expect(table.problem(in: found) != nil)
        (found[8], found[9]) = (entry("socket:[71]"), entry("socket:[72]"))
        #expect(table.problem(in: found) == nil)
        for wrong in [
            entry("socket:[30]"), entry("socket:[50]"), entry("socket:[60]"), entry("socket:[72]", "r"), entry(nil),
            entry("/home/alice/disk.img"), entry("anon_inode:[eventfd]"), entry("pipe:[7]"),
        ] {
            found[9] = wrong
            #expect(table.problem(in: found)?.contains("descriptor 9") == true, "\(wrong)")
        }
        found[9] = nil
        #expect(table.problem(in: found) != nil)
        (found[9], found[10]) = (entry("socket:[72]"), entry("socket:[73]"))
        #expect(table.problem(in: found) != nil)
    }

    @Test("are no others: each that is missing, more, of another kind or another socket is told")
    func others() {
        for number in Int32(0)...8 {
            var found = good
            found[number] = nil
            #expect(table.problem(in: found)?.isEmpty == false, "\(number) is missing")
        }
        for (number, wrong) in [
            (Int32(0), entry("/zero", "rw")), (0, entry("/null", "r")), (1, entry("/home/alice/disk.img")),
            (2, entry("pipe:[7]")), (3, entry("socket:[31]")), (3, entry("/null")), (4, entry("/ublkc8")),
            (4, entry("/ublk-control")), (5, entry("socket:[60]")), (6, entry("socket:[50]")),
            (7, entry("/memfd:other (deleted)")), (8, entry("socket:[9]")), (8, entry("anon_inode:[io_uring]")),
            (8, entry("/home/alice/disk.img", "w")), (9, entry("anon_inode:[pidfd]")), (10, entry("/etc/shadow")),
            (15, entry("/home/alice/disk.img")),
        ] {
            var found = good
            found[number] = wrong
            #expect(table.problem(in: found)?.isEmpty == false, "\(number): \(wrong)")
        }
        let null = DescriptorTable(number: 7, files: 0...0, workerEnd: 30, parking: 50, brokerEnd: 60)
        #expect(null.problem(in: good) != nil)
        #expect(null.problem(in: good.filter { $0.key < 8 }) == nil)
    }

    @Test("are read from the kernel without asking the files themselves")
    func real() throws {
        let problem = table.problem(inProcess: getpid())
        #expect(problem?.hasPrefix("descriptor") == true || problem?.contains("descriptors from 8 on") == true)
        // No such process.
        #expect(table.problem(inProcess: Int32.max) == "its descriptors can't be read")
    }

    @Test("that an earlier broker has not written down are sockets at least")
    func unknown() throws {
        var table = table
        table.workerEnd = nil
        #expect(table.problem(in: good) == nil)
        var found = good
        found[3] = entry("anon_inode:[eventfd]")
        #expect(table.problem(in: found) != nil)
    }
}
