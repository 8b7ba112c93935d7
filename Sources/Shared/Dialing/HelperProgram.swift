import CShims
import Glibc
import Numbers
import SystemCalls

/// How a program that `ubd` starts for a target begins: by its words it is told what to do, and `dialDescriptor` is where it
/// answers. Whoever starts it by hand hears what it is for.
public enum HelperProgram {
    /// The words that `ubd` gave, each as its bytes without the NUL; nil when there is nothing to do but to end with `status`.
    ///
    /// - Parameters:
    ///   - name: the program's.
    ///   - use: what `--help` says it does: "Opens LUKS volumes", say.
    ///   - target: the target for which `ubd add` starts it.
    ///   - status: the exit status of a program that was not started by `ubd`.
    public static func words(of name: String, for use: String, target: String, status: inout Int32) -> [[UInt8]]? {
        resetInheritedSignals()
        var count: Int32 = 0
        let all = ubd_arguments(&count)
        let words = (1..<max(Int(count), 1)).compactMap { index in
            all?[index].map { Array(UnsafeRawBufferPointer(start: $0, count: strlen($0))) }
        }
        let text: String
        switch words.first.map({ String(decoding: $0, as: UTF8.self) }) {
        case "--version": text = "\(name) \(UBDVersion.text)"
        case "--help", "-h":
            text = """
                usage: \(name) [--help | --version]
                \(use) for 'ubd add -t \(target)', which starts it and tells it what to do; see \(name)(8).
                """
        default:
            guard (try? option(dialDescriptor, SO_TYPE)) != Int32(SOCK_SEQPACKET.rawValue) else { return words }
            text = "\(name): this program is started by 'ubd add -t \(target)'; see 'ubd add --help'"
            status = writeStandard(text + "\n", to: STDERR_FILENO) == 0 ? 2 : 1
            return nil
        }
        status = writeStandard(text + "\n", to: STDOUT_FILENO) == 0 ? 0 : 1
        return nil
    }
}
