import Glibc
import Testing

@testable import SystemCalls

/// The list of file systems that are local, that are not, and that are unknown.
@Suite("A file system")
struct FileSystemTests {
    @Test("that keeps its files on this host's disks or in its memory is local")
    func local() {
        let magics: [(UInt32, String)] = [
            (0xef53, "ext4"), (0x5846_5342, "xfs"), (0x9123_683e, "btrfs"), (0xf2f5_2010, "f2fs"),
            (0x0102_1994, "tmpfs"), (0xca45_1a4e, "bcachefs"), (0x2fc1_2fc1, "zfs"),
            (0xe0f5_e1e2, "erofs"), (0x7371_7368, "squashfs"), (0x4d44, "vfat"), (0x2011_bab0, "exfat"),
            (0x7366_746e, "ntfs3"),
        ]
        for (magic, name) in magics {
            #expect(FileSystem(magic: magic).kind == .local)
            #expect(FileSystem(magic: magic).description == name)
        }
    }

    @Test("that gives the number of a local one must have a disk, or files that tell more than 9P's do")
    func proved() {
        // The facts that a 9P client gives of a file: the basic fields, and the attributes that the kernel's own layer
        // adds.
        var poor = statx()
        poor.stx_mask = UInt32(STATX_BASIC_STATS)
        poor.stx_attributes_mask = UInt64(STATX_ATTR_AUTOMOUNT | STATX_ATTR_MOUNT_ROOT | STATX_ATTR_DAX)
        var born = poor
        born.stx_mask |= UInt32(STATX_BTIME)
        var compressible = poor
        compressible.stx_attributes_mask |= UInt64(STATX_ATTR_COMPRESSED)
        let (disk, none) = (UInt64(0x803), UInt64(0x2b))
        for (magic, device, details, isLocal) in [
            (UInt32(0xef53), disk, poor as statx?, true), (0xef53, disk, nil, true), (0xef53, none, poor, false),
            (0xef53, none, nil, false), (0x9123_683e, none, born, true), (0x9123_683e, none, poor, false),
            (0x0102_1994, none, born, true), (0x0102_1994, none, poor, false), (0x2405_1905, none, compressible, true),
        ] {
            let found = FileSystem(magic: magic, device: device, details: details)
            #expect(found.kind == (isLocal ? .local : .other))
            #expect(found.isUnproved == !isLocal)
            #expect(FileSystem.description(ofCode: found.code).hasPrefix("it says ") == !isLocal)
        }
        // File systems that need a right anyway are believed.
        for magic in [UInt32(0x0102_1997), 0x6573_5546, 0x9fa0] {
            let found = FileSystem(magic: magic, device: none, details: poor)
            #expect(found == FileSystem(magic: magic))
        }
    }

    @Test("that passes all on, to a process or another file system, is not local, nor is one that nobody knows")
    func other() {
        for (magic, name) in [
            (UInt32(0x6573_5546), "fuse"), (0x794c_7630, "overlay"), (0xf15f, "ecryptfs"), (0x8584_58f6, "ramfs"),
        ] {
            #expect(FileSystem(magic: magic).kind == .other)
            #expect(FileSystem(magic: magic).description == name)
        }
        var unknown = 0
        for bit in 0..<32 {
            let found = FileSystem(magic: 0x1234_5678 ^ 1 << UInt32(bit))
            if found.kind == .other, found.name == nil { unknown += 1 }
        }
        #expect(unknown == 32)
        #expect(FileSystem(magic: 0x1234_abcd).description == "of type 0x1234abcd")
    }

    @Test("of other machines is one of the network, and the kernel's own are none for data")
    func elsewhere() {
        for magic in [UInt32(0x6969), 0xff53_4d42, 0x0102_1997, 0x0116_1970] {
            #expect(FileSystem(magic: magic).kind == .network)
        }
        for magic in [UInt32(0x9fa0), 0x6265_6572, 0x6367_7270, 0x534f_434b] {
            #expect(FileSystem(magic: magic).kind == .kernel)
        }
    }

    @Test("has one number and one kind: no number stands in two lists")
    func once() {
        let lists = FileSystem.lists.flatMap { $0.1.map(\.magic) }
        #expect(Set(lists).count == lists.count)
    }
}
