import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("The sectors that a disk's content was made for")
struct ContentSectorsTests {
    /// A GPT header as sgdisk writes it, for sectors of that many bytes, with a valid checksum.
    static func header(sector: Int, bytes: Int = 64 << 10) -> [UInt8] {
        var disk = [UInt8](repeating: 0, count: bytes)
        var header = [UInt8](repeating: 0, count: 92)
        header.replaceSubrange(0..<8, with: "EFI PART".utf8)
        header.replaceSubrange(8..<16, with: [0, 0, 1, 0, 92, 0, 0, 0])
        header[24] = 1
        let sum = crc(header)
        header.replaceSubrange(16..<20, with: (0..<4).map { UInt8(truncatingIfNeeded: sum >> (8 * $0)) })
        disk.replaceSubrange(sector..<sector + 92, with: header)
        return disk
    }

    /// CRC-32, most significant bit first over mirrored bits: another way to the same sum than the program's.
    private static func crc(_ bytes: [UInt8]) -> UInt32 {
        func mirrored(_ value: UInt32, _ bits: Int) -> UInt32 {
            (0..<bits).reduce(0) { $0 | (value >> UInt32($1) & 1) << UInt32(bits - 1 - $1) }
        }
        var value = UInt32.max
        for byte in bytes {
            value ^= mirrored(UInt32(byte), 8) << 24
            for _ in 0..<8 { value = value << 1 ^ (value >> 31 == 1 ? 0x04c1_1db7 : 0) }
        }
        return ~mirrored(value, 32)
    }

    private func disk(_ parts: [(at: Int, bytes: [UInt8])]) -> [UInt8] {
        var disk = [UInt8](repeating: 0, count: 64 << 10)
        for part in parts { disk.replaceSubrange(part.at..<part.at + part.bytes.count, with: part.bytes) }
        return disk
    }

    @Test("are those where the header of a GPT lies, when its checksum is right")
    func tables() {
        for sector in [512, 4096] {
            var disk = Self.header(sector: sector)
            #expect(ContentSectors(head: disk) == .table(UInt64(sector)))
            disk[sector + 40] ^= 1
            #expect(ContentSectors(head: disk) == nil)
        }
        // With an old header of another sector size the result is ambiguous.
        var both = Self.header(sector: 512)
        both.replaceSubrange(4096..<4188, with: Self.header(sector: 4096)[4096..<4188])
        #expect(ContentSectors(head: both) == nil)
    }

    @Test("are what a file system's boot sector or superblock says")
    func fileSystems() {
        let fat: [UInt8] =
            [0xeb, 0x3c, 0x90] + Array("mkfs.fat".utf8) + [0, 2, 4, 4, 0, 2, 0, 2, 0, 8, 0xf8]
        let signature: (Int, [UInt8]) = (510, [0x55, 0xaa])
        #expect(ContentSectors(head: disk([(0, fat), signature])) == .fileSystem("FAT", 512))
        #expect(ContentSectors(head: disk([(0, fat)])) == nil)
        // An MBR has the same signature, and code where FAT has numbers.
        #expect(ContentSectors(head: disk([(0, [0xeb, 0x63, 0x90]), signature])) == nil)
        let ntfs: [UInt8] = [0xeb, 0x52, 0x90] + Array("NTFS    ".utf8) + [0, 2]
        #expect(ContentSectors(head: disk([(0, ntfs), signature])) == .fileSystem("NTFS", 512))
        #expect(
            ContentSectors(head: disk([(3, Array("EXFAT   ".utf8)), (108, [9])])) == .fileSystem("exFAT", 512))
        #expect(ContentSectors(head: disk([(0, Array("XFSB".utf8)), (102, [2, 0])])) == .fileSystem("XFS", 512))
        #expect(
            ContentSectors(head: disk([(1048, [0]), (1080, [0x53, 0xef])]))
                == .fileSystem("an ext file system", 1024))
        #expect(
            ContentSectors(head: disk([(1048, [2]), (1080, [0x53, 0xef])]))
                == .fileSystem("an ext file system", 4096))
        #expect(ContentSectors(head: disk([(32769, Array("CD001".utf8))])) == .fileSystem("ISO 9660", 2048))
        #expect(ContentSectors(head: disk([])) == nil)
    }

    @Test("are not looked for beyond the end of a short file")
    func short() {
        let whole = Self.header(sector: 4096)
        for count in [0, 1, 511, 512, 516, 1080, 4096, 4104, 4187] {
            #expect(ContentSectors(head: Array(whole.prefix(count))) == nil)
        }
        var all = [UInt8](repeating: 0xff, count: 1 << 16)
        all.replaceSubrange(512..<520, with: "EFI PART".utf8)
        #expect(ContentSectors(head: all) == nil)
    }

    @Test(
        "are read by a child, from the offset on; that a file cannot be read, or does not answer, is an error of its own"
    )
    func child() throws {
        func look(_ path: String, offset: UInt64 = 0, seconds: Int = 10) throws(SystemError) -> ContentSectors? {
            try ContentSectors.look(at: path, offset: offset, seconds: seconds)
        }
        let folder = TemporaryFolder()
        let disk = [UInt8](repeating: 0, count: 5 << 10) + Self.header(sector: 4096)
        let path = folder.path + "/disk"
        try Data(disk).write(to: URL(filePath: path))
        #expect(try look(path) == nil)
        #expect(try look(path, offset: 5 << 10) == .table(4096))
        #expect(try look(path, offset: 1 << 40) == nil)
        // Enough of the beginning is read for every check.
        try Data(self.disk([(32769, Array("CD001".utf8))])).write(to: URL(filePath: path))
        #expect(try look(path) == .fileSystem("ISO 9660", 2048))
        for (name, errno) in [("", EISDIR), ("/nothing", ENOENT)] {
            let unread = folder.path + name
            #expect(throws: SystemError("read \(unread)", errno)) { try look(unread) }
        }
        #expect(throws: SystemError("read \(path)", ETIMEDOUT)) { try look(path, seconds: 0) }
    }

    @Test("are told when the device has others, with the option to give; a disk may have no smaller ones")
    func notices() {
        let table = ContentSectors.table(512)
        #expect(table.notice("d.img", blockSize: 512, smallest: 512) == nil)
        #expect(
            table.notice("d.img", blockSize: 4096, smallest: 512)?.message
                == "d.img has a partition table (GPT) of 512-byte sectors, which cannot be read from the device's blocks of "
                + "4096 bytes; delete the device and add it with --block-size 512")
        #expect(
            table.notice("/dev/sda", blockSize: 4096, smallest: 4096)?.message.contains("copy its content into a file")
                == true)
        #expect(ContentSectors.table(4096).needed(insteadOf: 512) == 4096)
        // A file system can combine the device's sectors into larger ones, but not split them.
        #expect(ContentSectors.fileSystem("FAT", 4096).needed(insteadOf: 512) == nil)
        #expect(ContentSectors.fileSystem("FAT", 512).needed(insteadOf: 4096) == 512)
    }

    /// `ubd add` of a file with that content: the request to the broker, and the notes for the user.
    private func add(
        _ content: [UInt8], _ arguments: [String] = [], blockSize: UInt32
    ) throws -> (options: [OptionValue], told: [String]) {
        let folder = TemporaryFolder()
        let file = folder.file("d.img", bytes: 1 << 20)
        let descriptor = open(file, O_WRONLY)
        defer { close(descriptor) }
        #expect(content.withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) } == content.count)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            var device = FakeBroker.device()
            device.blockSize = blockSize
            connection.send(AddReply.added(device, notices: []).reply)
        }
        let console = Recorder()
        let status = CommandLineTool.run(["add", "-t", "loop", "-f", file] + arguments, broker.environment(console))
        #expect(status == 0)
        #expect(broker.finish())
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        return (request.options, console.errors.map { $0.replacing(folder.path + "/", with: "") })
    }

    @Test("are a file's device's when its table has 4096-byte sectors, and nothing else was asked for")
    func followed() throws {
        let large = try add(Self.header(sector: 4096), blockSize: 4096)
        #expect(large.options == [OptionValue("block-size", "4096")])
        #expect(
            large.told == [
                "ubd: note: d.img has a partition table (GPT) of 4096-byte sectors, so the device has blocks of 4096 bytes; "
                    + "--block-size 512 would make others"
            ])
        let usual = try add(Self.header(sector: 512), blockSize: 512)
        #expect(usual.options == [] && usual.told == [])
        let asked = try add(Self.header(sector: 512), ["--block-size", "4K"], blockSize: 4096)
        #expect(asked.options == [OptionValue("block-size", "4096")])
        #expect(asked.told.count == 1 && asked.told[0].hasSuffix("add it with --block-size 512"))
        let small = try add(Self.header(sector: 4096), ["--block-size", "512"], blockSize: 512)
        #expect(small.options == [OptionValue("block-size", "512")])
        #expect(small.told.count == 1 && small.told[0].hasSuffix("add it with --block-size 4096"))
    }
}
