import CShims
import Glibc

/// The operations of fallocate(2) that a regular file's file system supports. The disk does not offer missing ones, and
/// the kernel's block layer writes zeros itself: without an error for each request in its log and in the counters.
struct FileRanges: Equatable, Sendable {
    /// FALLOC_FL_PUNCH_HOLE: for discards, and for zeros that need not keep their space. Zeros that must keep it are
    /// written.
    var holes: Bool

    static let all = FileRanges(holes: true)

    init(holes: Bool) {
        self.holes = holes
    }

    /// From the magic number of its file system (linux/magic.h). There is no harmless way to try; a file system that
    /// lacks an operation and is not listed here fails the first request.
    init(magic: UInt32) {
        switch magic {
        // vfat and msdos (fs/fat/file.c, fat_fallocate), exfat.
        case 0x4d44, 0x2011_bab0: self.init(holes: false)
        // ramfs, JFS, HFS, HFS+: no fallocate at all.
        case 0x8584_58f6, 0x3153_464a, 0x4244, 0x482b: self.init(holes: false)
        default: self = .all
        }
    }

    /// For the open file `descriptor`; everything when the file system is not known.
    init(of descriptor: Int32) {
        var system = statfs()
        self = fstatfs(descriptor, &system) == 0 ? FileRanges(magic: UInt32(truncatingIfNeeded: system.f_type)) : .all
    }
}
