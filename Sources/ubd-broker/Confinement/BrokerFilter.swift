import CShims
import Glibc
import Policy
import PolicyCompiler
import Sandbox
import SystemCalls

/// The broker's own seccomp filter (policy/seccomp/broker.policy). Its children inherit it, so it also bounds what a
/// launcher does between clone and exec, and a worker before it has filters of its own.
enum BrokerFilter {
    /// Reads and compiles the policy, which must be root's. Errors say file, line and column.
    static func load(folder: String) throws -> SystemCallFilter {
        let policy = try SeccompPolicy(parsing: "broker.policy") { name in
            try TrustedFile.read(folder + "/seccomp/" + name)
        }
        return SystemCallFilter(instructions: try SeccompCompiler.compile(policy).instructions)
    }
}
