/// What stands behind a file, by the magic number of its file system (linux/magic.h, statfs(2)).
enum FileSystemKind: Equatable, Sendable {
    case local
    /// The kernel itself: its files are switches and reports, not storage.
    case kernel
    /// A user's process, which may stop answering.
    case fuse
    /// Another machine, which may stop answering.
    case network

    init(magic: UInt32) {
        if magic == 0x6573_5546 {
            self = .fuse
        } else if FileSystemKind.kernelMagics.contains(magic) {
            self = .kernel
        } else if FileSystemKind.networkMagics.contains(magic) {
            self = .network
        } else {
            self = .local
        }
    }

    static let kernelMagics: Set<UInt32> = [
        0x0000_9fa0,  // proc
        0x6265_6572,  // sysfs
        0x6462_6720,  // debugfs
        0x7472_6163,  // tracefs
        0x7363_6673,  // securityfs
        0x0027_e0eb,  // cgroup
        0x6367_7270,  // cgroup2
        0x6265_6570,  // configfs
        0xf97c_ff8c,  // selinuxfs
        0x4341_5d53,  // smackfs
        0x5a3c_69f0,  // apparmorfs
        0xcafe_4a11,  // bpf
        0x6165_676c,  // pstore
        0xde5e_81e4,  // efivarfs
        0x6e73_6673,  // nsfs
        0x5049_4446,  // pidfs
        0x0904_1934,  // anonymous inodes
        0x5345_434d,  // secretmem
        0x474d_454d,  // guest_memfd
        0x534f_434b,  // sockfs
        0x5049_5045,  // pipefs
        0x0000_1cd1,  // devpts
        0x4249_4e4d,  // binfmt_misc
        0x1980_0202,  // mqueue
        0x0765_5821,  // resctrl
        0x444d_4142,  // dma-buf
        0x9584_58f6,  // hugetlbfs
        0x6573_5543,  // fusectl
        0x0000_0187,  // autofs
        0x6c6f_6f70,  // binderfs
        0x0000_9fa2,  // usbdevfs
        0x0000_9fa1,  // openpromfs
        0xabba_1974,  // xenfs
        0x6759_6969,  // rpc_pipefs
        0x6e66_7364,  // nfsd
    ]

    static let networkMagics: Set<UInt32> = [
        0x0000_6969,  // NFS
        0x0000_517b,  // SMB
        0xff53_4d42,  // CIFS
        0xfe53_4d42,  // SMB2 and later
        0x00c3_6400,  // Ceph
        0x0102_1997,  // 9P
        0x5346_414f,  // AFS (OpenAFS)
        0x6b41_4653,  // AFS (kernel)
        0x7375_7245,  // Coda
        0x0000_564c,  // NCP
        0x0bd0_0bd0,  // Lustre
        0x2003_0528,  // OrangeFS
        0x1983_0326,  // BeeGFS
        0x4750_4653,  // GPFS
        0xaad7_aaea,  // PanFS
        0x786f_4256,  // vboxsf: the hypervisor's host
        0xbacb_acbc,  // vmhgfs: the same
    ]
}
