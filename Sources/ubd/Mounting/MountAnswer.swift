import CShims
import Glibc
import SystemCalls

/// What comes of a request to a mounted file system. A FUSE server leaves its parent with status 0 before it serves the first
/// one, and can die there: fuse2fs 1.47.0 does after it has replayed a journal. The mount is in the table all the same.
enum MountAnswer: Equatable {
    case answers
    /// Nothing within the deadline.
    case hangs
    case fails(errno: Int32)

    /// Opens the directory, in a child: on a server that hangs only SIGKILL ends that.
    static func ask(_ place: [UInt8], _ deadline: Deadline) throws(SystemError) -> MountAnswer {
        let path = place.map(CChar.init(bitPattern:)) + [0]
        let child = try HelperProcess { (output, null) throws(SystemError) in
            let pid = ubd_flush_child(path, S_IFDIR, 0, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, null, output)
            guard pid > 0 else { throw SystemError("start a child", -pid) }
            return pid
        }
        guard let report = try child.bytes(most: 1024, deadline) else { return .hangs }
        return verdict(try DeviceFlush.outcome(report.bytes))
    }

    /// A refusal is an answer, too: of a root directory that its user may not read.
    static func verdict(_ outcome: DeviceFlush.Outcome) -> MountAnswer {
        switch outcome {
        case .flushed, .otherFile, .failed(_, EACCES), .failed(_, EPERM): .answers
        case .failed(_, let number): .fails(errno: number)
        case .busy: .fails(errno: EBUSY)
        case .noNode: .fails(errno: ENXIO)
        case .timedOut: .hangs
        }
    }
}
