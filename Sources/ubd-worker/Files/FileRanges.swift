import CShims
import Glibc

/// What of fallocate(2) a regular file's file system has. Where it lacks something the disk does not offer it, and the
/// kernel's block layer writes zeros itself: without an error for each request in its log and in the counters.
struct FileRanges: Equatable, Sendable {
    /// FALLOC_FL_PUNCH_HOLE: a discard is a hole, and so are zeros that need not keep their space. Those that must are written.
    var holes: Bool

    static let all = FileRanges(holes: true)

    init(holes: Bool) {
        self.holes = holes
    }

    /// By the magic number of its file system (linux/magic.h). There is no harmless way to try; one that is not named here
    /// and lacks something says so at the first request.
    init(magic: UInt32) {
        switch magic {
        // vfat and msdos (fs/fat/file.c, fat_fallocate), exfat.
        case 0x4d44, 0x2011_bab0: self.init(holes: false)
        // ramfs, JFS, HFS, HFS+: no fallocate at all.
        case 0x8584_58f6, 0x3153_464a, 0x4244, 0x482b: self.init(holes: false)
        default: self = .all
        }
    }

    /// What the file that is open as `descriptor` has; everything when that can't be asked.
    init(of descriptor: Int32) {
        var system = statfs()
        self = fstatfs(descriptor, &system) == 0 ? FileRanges(magic: UInt32(truncatingIfNeeded: system.f_type)) : .all
    }
}
