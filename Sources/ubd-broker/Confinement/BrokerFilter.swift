import CShims
import Glibc
import Policy
import PolicyCompiler
import Sandbox
import SystemCalls

/// The broker's own seccomp filter (policy/seccomp/broker.policy). Its children inherit it, so it also limits a
/// launcher between clone and exec, and a worker before it loads its own filters.
enum BrokerFilter {
    /// Reads and compiles the policy, which only root may be able to write. Errors give file, line and column.
    static func load(folder: String) throws -> SystemCallFilter {
        let policy = try SeccompPolicy(parsing: "broker.policy") { name in
            try TrustedFile.read(folder + "/seccomp/" + name)
        }
        return SystemCallFilter(instructions: try SeccompCompiler.compile(policy).instructions)
    }
}
