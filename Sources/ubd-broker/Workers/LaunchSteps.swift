import CLauncher
import Glibc
import SystemCalls
import WorkerProtocol

/// Describes the steps of launcher and worker for the user.
enum StartFailure {
    /// The launcher's step, as a verb phrase.
    static func launcherStep(_ step: Int32) -> String {
        switch UInt32(bitPattern: step) {
        case UBD_LAUNCH_NAMESPACES.rawValue: "give the worker namespaces of its own"
        case UBD_LAUNCH_FILES.rawValue: "set up the worker's descriptors"
        case UBD_LAUNCH_OPEN_DEVICE.rawValue: "open the device's control node in the worker"
        case UBD_LAUNCH_CONTROL_GROUP.rawValue: "move the worker into its control group"
        case UBD_LAUNCH_OOM_SCORE.rawValue: "set the worker's oom score"
        case UBD_LAUNCH_PROCESSORS.rawValue: "keep the worker on its processors"
        case UBD_LAUNCH_MOUNTS.rawValue: "mount the worker's empty root"
        case UBD_LAUNCH_PIVOT.rawValue: "change to the worker's empty root"
        case UBD_LAUNCH_IO_FLUSHER.rawValue: "mark the worker as part of memory reclaim"
        case UBD_LAUNCH_LIMITS.rawValue: "set the worker's limits"
        case UBD_LAUNCH_BOUNDING_SET.rawValue: "empty the worker's bounding set"
        case UBD_LAUNCH_GROUPS.rawValue: "set the worker's group"
        case UBD_LAUNCH_USER.rawValue: "set the worker's uid"
        case UBD_LAUNCH_CAPABILITIES.rawValue: "drop the worker's capabilities"
        case UBD_LAUNCH_STILL_ROOT.rawValue: "make sure that the worker can't become root again"
        case UBD_LAUNCH_NO_NEW_PRIVILEGES.rawValue: "forbid the worker new privileges"
        case UBD_LAUNCH_SIGNALS.rawValue: "reset the worker's signals"
        case UBD_LAUNCH_EXEC.rawValue: "execute the worker's program"
        default: "start the worker (step \(step))"
        }
    }

    /// The file system of a failure. The worker reported it; it is only displayed.
    private static func fileSystem(_ failure: WorkerFailure) -> String {
        FileSystem.description(ofCode: failure.detail)
    }

    /// What is wrong with a file that cannot back a device, and a remedy; nil when the step is not about the file.
    static func file(_ failure: WorkerFailure, name: String) -> (message: String, remedy: String)? {
        let regular = "give a regular file or a block device"
        switch failure.step {
        case .fileIsDirectory: return ("\(name) is a directory", regular)
        case .fileIsPipe: return ("\(name) is a pipe", regular)
        case .fileIsSocket: return ("\(name) is a socket", regular)
        case .fileIsCharacterDevice: return ("\(name) is a character device", regular)
        case .fileIsOther: return ("\(name) is neither a regular file nor a block device", regular)
        case .fileIsPathOnly: return ("\(name) was opened with O_PATH", "open it for reading, and writing if need be")
        case .fileIsAppendOnly: return ("\(name) was opened with O_APPEND", "open it without")
        case .fileIsWriteOnly: return ("\(name) was opened for writing only", "open it for reading and writing")
        case .fileNotWritable: return ("\(name) was opened for reading only", "ask for a read-only device")
        case .fileOnKernelFileSystem:
            return ("\(name) is on a file system of the kernel's own (\(fileSystem(failure)))", regular)
        case .fileOnOtherFileSystem:
            return (
                "\(name) is on a file system that is not known to be local (\(fileSystem(failure)))",
                "copy it to another one, or ask the administrator for allow-other-fs (ubd.access(5))"
            )
        case .fileOnNetwork:
            return (
                "\(name) is on a network file system (\(fileSystem(failure)))",
                "copy it to another one, or ask the administrator for allow-network-fs (ubd.access(5))"
            )
        case .fileIsUbdDevice: return ("\(name) is a ublk device or lies on one", "give a file or another block device")
        case .filesDiffer: return ("the two files are not the same file", "send one file opened twice")
        case .fileEmpty: return ("\(name) is empty", "give it a size first: truncate -s 1G FILE")
        case .fileCount:
            return ("the message had \(failure.detail) files", "send one file, or the same one opened twice")
        case .fileStatus:
            return ("the properties of \(name) can't be read: \(SystemError.message(failure.errno))", regular)
        case .peekFiles where failure.errno == EMSGSIZE:
            return ("the message had too many files", "send one file, or the same one opened twice")
        case .peekFiles:
            return ("no file could be taken: \(SystemError.message(failure.errno))", "see the broker's log")
        default: return nil
        }
    }
}
