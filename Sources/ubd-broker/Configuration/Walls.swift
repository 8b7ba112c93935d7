import CShims
import Glibc
import Policy
import PolicyCompiler
import SystemCalls
import WorkerProtocol

/// What confines the workers of one target: compiled once when the broker starts, and given to each worker as a memfd
/// that nobody can change any more.
final class Walls {
    let target: TargetKind
    let bundle: FileDescriptor

    /// Reads and compiles the policies of one target. Errors say file, line and column.
    convenience init(target: TargetKind, folder: String) throws {
        let setup = try SeccompPolicy(parsing: "worker-setup.policy", read: Walls.reader(folder + "/seccomp"))
        let loop = try SeccompPolicy(parsing: "target-\(target.name).policy", read: Walls.reader(folder + "/seccomp"))
        let ring = try RingPolicy(parsing: "\(target.name).ring", read: Walls.reader(folder + "/rings"))
        try self.init(
            target: target,
            content: SandboxBundle(
                setupFilter: try SeccompCompiler.compile(setup).instructions,
                loopFilter: try SeccompCompiler.compile(loop).instructions,
                ringOperations: ring.operations, ringRegisterOperations: ring.registerOperations,
                ringFlagsAllowed: ring.allowedFlags, ringFlagsRequired: ring.requiredFlags))
    }

    init(target: TargetKind, content: SandboxBundle) throws(SystemError) {
        self.target = target
        bundle = try Walls.sealed(content.encoded())
    }

    private static func reader(_ folder: String) -> PolicyReader {
        { name in try TrustedFile.read(folder + "/" + name) }
    }

    /// A memfd with that content, for ever.
    private static func sealed(_ bytes: [UInt8]) throws(SystemError) -> FileDescriptor {
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ubd-walls", flags) })
        try file.writeAll(bytes)
        let seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
        try call("seal a memfd") { fcntl(file.raw, F_ADD_SEALS, seals) }
        return file
    }
}
