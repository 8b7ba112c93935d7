import CShims
import Glibc

/// The file systems that ubd knows, by f_type of statfs(2) (linux/magic.h and the file systems' sources), and how far
/// each can harm a process that reads and writes a file on it. Client and worker both use this list.
///
/// Only file systems listed as local count as local. All others, unknown ones included, need a right in the access
/// policy: an unprivileged user may mount FUSE, and in a user namespace overlayfs on top of it.
public struct FileSystem: Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        /// The kernel keeps the file in memory or on block devices of this host, and no other party controls it.
        case local
        /// An interface of the kernel: its files are switches and reports, not storage. No right allows them.
        case kernel
        /// Other machines take part and may stop answering. Needs the right `allow-network-fs`.
        case network
        /// Unknown, or known to pass everything on to another file system or process. Needs the right `allow-other-fs`.
        case other
    }

    /// f_type.
    public let magic: UInt32
    public let kind: Kind
    /// The name that mount(8) uses; nil for a number that is not listed.
    public let name: String?

    /// `magic`: f_type; only its low 32 bits have a meaning.
    public init(magic: UInt32) {
        self.magic = magic
        for (kind, list) in FileSystem.lists {
            guard let name = list.first(where: { $0.magic == magic })?.name else { continue }
            self.kind = kind
            self.name = name
            return
        }
        kind = .other
        name = nil
    }

    /// Classifies the file system of an open file. The number alone proves nothing: 9P passes on the number that its
    /// server reports (v9fs_statfs in fs/9p/vfs_super.c), and servers such as QEMU's report that of the file system
    /// below them. A local file system also has a disk, or its files report attributes that 9P never does
    /// (v9fs_vfs_getattr_dotl).
    ///
    /// - Parameters:
    ///   - magic: f_type of fstatfs(2).
    ///   - device: st_dev. Its major number is 0 when there is no disk.
    ///   - details: statx(2) of the file, with its birth time requested; nil when the call failed.
    public init(magic: UInt32, device: UInt64, details: statx?) {
        let claim = FileSystem(magic: magic)
        let tells = details.map {
            $0.stx_mask & UInt32(STATX_BTIME) != 0 || $0.stx_attributes_mask & UInt64(STATX_ATTR_COMPRESSED) != 0
        }
        guard claim.kind == .local, ubd_major(device) == 0, tells != true else {
            self = claim
            return
        }
        self.magic = claim.magic
        kind = .other
        name = claim.name
        isUnproved = true
    }

    /// It reports the number of a local file system without the evidence of one.
    public private(set) var isUnproved = false

    /// For a message between processes: f_type, with `isUnproved` in bit 32.
    public var code: UInt64 { UInt64(magic) | (isUnproved ? FileSystem.unproved : 0) }
    private static let unproved: UInt64 = 1 << 32

    /// Text for a `code`, for messages. The code may come from an untrusted process.
    public static func description(ofCode code: UInt64) -> String {
        let text = FileSystem(magic: UInt32(truncatingIfNeeded: code)).description
        return code & unproved == 0 ? text : "it says \(text), as 9P may, and offers no evidence"
    }

    /// For messages: "overlay", or "of type 0x61756673" for an unlisted number.
    public var description: String { name ?? "of type 0x" + String(magic, radix: 16) }

    /// Pairs and no dictionaries: the first one of its type costs a program 250,000 instructions.
    typealias Entry = (magic: UInt32, name: String)

    static let lists: [(Kind, [Entry])] = [
        (.local, local), (.kernel, kernel), (.network, network), (.other, other),
    ]

    /// Each writes to block devices of this host or to memory, in kernel code. It can wait only for a disk, and that
    /// disk could back a device itself.
    private static let local: [Entry] = [
        // On block devices, with all that a disk needs: holes, direct I/O, fsync.
        (0x0000_ef53, "ext4"),  // ext2 and ext3 as well
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0xf2f5_2010, "f2fs"),
        (0xca45_1a4e, "bcachefs"),
        (0x3153_464a, "jfs"),
        (0x0000_3434, "nilfs2"),
        // Out of tree, but it runs in the kernel on block devices and has a number of its own.
        (0x2fc1_2fc1, "zfs"),
        // In memory. devtmpfs and memfd report tmpfs's number.
        (0x0102_1994, "tmpfs"),
        // On block devices, without holes or without direct I/O: the target tries each and does without.
        (0x0000_4d44, "vfat"),  // msdos as well
        (0x2011_bab0, "exfat"),
        (0x7366_746e, "ntfs3"),  // ntfs-3g is FUSE and reports FUSE's number
        (0x5346_544e, "ntfs"),
        (0x0000_4244, "hfs"),
        (0x0000_482b, "hfsplus"),
        (0x1501_3346, "udf"),
        // On flash memory of this host.
        (0x2405_1905, "ubifs"),
        // Read-only images on block devices. Only root can mount erofs from a plain file, and root chooses that file.
        (0xe0f5_e1e2, "erofs"),
        (0x7371_7368, "squashfs"),
        (0x0000_9660, "iso9660"),
        (0x28cd_3d45, "cramfs"),
    ]

    private static let kernel: [Entry] = [
        (0x0000_9fa0, "proc"),
        (0x6265_6572, "sysfs"),
        (0x6462_6720, "debugfs"),
        (0x7472_6163, "tracefs"),
        (0x7363_6673, "securityfs"),
        (0x0027_e0eb, "cgroup"),
        (0x6367_7270, "cgroup2"),
        (0x6265_6570, "configfs"),
        (0xf97c_ff8c, "selinuxfs"),
        (0x4341_5d53, "smackfs"),
        (0x5a3c_69f0, "apparmorfs"),
        (0xcafe_4a11, "bpf"),
        (0x6165_676c, "pstore"),
        (0xde5e_81e4, "efivarfs"),
        (0x6e73_6673, "nsfs"),
        (0x5049_4446, "pidfs"),
        (0x0904_1934, "anon_inodefs"),
        (0x5345_434d, "secretmem"),
        (0x474d_454d, "guest_memfd"),
        (0x534f_434b, "sockfs"),
        (0x5049_5045, "pipefs"),
        (0x0000_1cd1, "devpts"),
        (0x4249_4e4d, "binfmt_misc"),
        (0x1980_0202, "mqueue"),
        (0x0765_5821, "resctrl"),
        (0x444d_4142, "dmabuf"),
        (0x9584_58f6, "hugetlbfs"),
        (0x6573_5543, "fusectl"),
        (0x0000_0187, "autofs"),
        (0x6c6f_6f70, "binder"),
        (0x0000_9fa2, "usbdevfs"),
        (0x0000_9fa1, "openpromfs"),
        (0xabba_1974, "xenfs"),
        (0x6759_6969, "rpc_pipefs"),
        (0x6e66_7364, "nfsd"),
    ]

    private static let network: [Entry] = [
        (0x0000_6969, "nfs"),
        (0x0000_517b, "smbfs"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb3"),
        (0x00c3_6400, "ceph"),
        (0x0102_1997, "9p"),
        (0x5346_414f, "afs"),  // OpenAFS
        (0x6b41_4653, "afs"),  // the kernel's
        (0x7375_7245, "coda"),
        (0x0000_564c, "ncpfs"),
        (0x0bd0_0bd0, "lustre"),
        (0x2003_0528, "orangefs"),
        (0x1983_0326, "beegfs"),
        (0x4750_4653, "gpfs"),
        (0xaad7_aaea, "panfs"),
        // Shared by the host of a virtual machine.
        (0x786f_4256, "vboxsf"),
        (0xbacb_acbc, "vmhgfs"),
        // On disks that several machines share: I/O can wait for another machine's lock.
        (0x0116_1970, "gfs2"),
        (0x7461_636f, "ocfs2"),
    ]

    /// Listed only so that messages can name them.
    private static let other: [Entry] = [
        // Any user who may mount can serve it by a process. fuseblk and virtiofs report the same number.
        (0x6573_5546, "fuse"),
        // These pass everything on to files of other file systems, including FUSE, and do not say which.
        (0x794c_7630, "overlay"),
        (0x6175_6673, "aufs"),
        (0x0000_f15f, "ecryptfs"),
        (0x6a65_6a62, "shiftfs"),
        // In memory, but nothing distinguishes its files from those of a 9P server that reports its number.
        (0x8584_58f6, "ramfs"),
    ]
}
