import CShims
import Dialing
import Glibc
import Programs
import SystemCalls

/// `ubd-crypt`: opens a LUKS volume for `ubd`, as the user, and hands over the volume key in a sealed memfd.
public func runCrypt() -> Int32 {
    var status: Int32 = 0
    guard let words = HelperProgram.words(of: "ubd-crypt", for: "Opens LUKS volumes", target: "crypt", status: &status)
    else { return status }
    // Passphrase and key never reach a core dump: the limit alone does not hold for one that goes to a program (core(5)). Nor can
    // other programs of the user's look into this process.
    var none = rlimit(rlim_cur: 0, rlim_max: 0)
    setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
    processControl(PR_SET_DUMPABLE, 0)
    let channel = FileDescriptor(owning: dialDescriptor)
    // A header can ask for hours of work, and nobody would end it when `ubd` is killed.
    processControl(PR_SET_PDEATHSIG, UInt(SIGKILL))
    guard !hasEnded(channel.raw) else { return 1 }
    do throws(DialFailure) {
        try demandOpenFiles()
        let arguments = try Arguments(words)
        let volume = try LUKSVolume(name: arguments.file, hasHeader: arguments.hasHeader)
        var facts = try volume.facts()
        let key = try arguments.source.unlock(volume)
        facts.keyMark = key.mark
        return tell(.unlocked(facts), channel, files: [key.file.raw]) ? 0 : 1
    } catch {
        return tell(.failed(error), channel, files: []) ? 1 : 2
    }
}

private func tell(_ reply: UnlockReply, _ channel: borrowing FileDescriptor, files: [Int32]) -> Bool {
    (try? send(channel.raw, reply.bytes, files: files)) != nil
}

/// Both libraries say other things than that they can open no more files, and libgcrypt ends the process then.
private func demandOpenFiles() throws(DialFailure) {
    let fewest: rlim_t = 32
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < fewest else { return }
    limit.rlim_cur = min(fewest, limit.rlim_max)
    guard limit.rlim_cur == fewest, setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
        throw DialFailure(
            .host, "ubd-crypt may open \(limit.rlim_max) files, and needs \(fewest)",
            remedy: "allow more open files, as in 'ulimit -n 64'")
    }
}

/// The arguments, as `ubd` gives them.
private struct Arguments {
    /// The name of the volume's file, for people; the file itself is open.
    var file = ""
    /// The header is not in the file itself, but in another open one.
    var hasHeader = false
    /// Where the passphrase comes from.
    var source = PassphraseSource.person

    init(_ words: [[UInt8]]) throws(DialFailure) {
        var rest = words[...]
        while let name = rest.popFirst() {
            let name = String(decoding: name, as: UTF8.self)
            if name == "--header-on-6" {
                hasHeader = true
                continue
            }
            guard let value = rest.popFirst().map({ String(decoding: $0, as: UTF8.self) }) else {
                throw Self.wrong(name)
            }
            switch name {
            case "--file": file = value
            case "--key-on-4": source = .file(name: value)
            default: throw Self.wrong(name)
            }
        }
        guard !file.isEmpty else { throw Self.wrong("--file") }
    }

    private static func wrong(_ name: String) -> DialFailure {
        DialFailure(.usage, "the argument '\(name)' is unknown, or lacks a value", remedy: "let ubd start this program")
    }
}
