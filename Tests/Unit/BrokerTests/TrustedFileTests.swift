import Foundation
import Glibc
import Testing

@testable import ubd_broker

/// In /run, which belongs to root on every host; everybody can write to /tmp.
@Suite("A file that decides what root does", .enabled(if: getuid() == 0, "only root can make such files"))
struct TrustedFileTests {
    private let top = "/run/ubd-trust-\(getpid())-\(UInt32.random(in: 0 ... .max))"

    private func refusal(_ path: String) -> String? {
        do {
            _ = try TrustedFile.read(path)
            return nil
        } catch { return error.description }
    }

    private func make(_ path: String, mode: mode_t = 0o755, owner: uid_t = 0) {
        mkdir(path, 0o700)
        chmod(path, mode)
        chown(path, owner, 0)
    }

    /// Makes a folder with a good file in it, and another folder, as `body` wants it.
    private func inFolders(_ body: (_ good: String, _ other: String) throws -> Void) throws {
        make(top)
        make(top + "/good")
        defer { try? FileManager.default.removeItem(atPath: top) }
        let file = top + "/good/policy"
        try Data("x".utf8).write(to: URL(filePath: file))
        chmod(file, 0o644)
        #expect(refusal(file) == nil)
        try body(top + "/good", top + "/other")
    }

    @Test("is not read from a folder, nor from below one, that somebody else can write, whatever the file's own mode")
    func folders() throws {
        try inFolders { good, other in
            for (mode, owner) in [(mode_t(0o777), uid_t(0)), (0o1777, 0), (0o775, 0), (0o757, 0), (0o755, 1000)] {
                make(other, mode: mode, owner: owner)
                make(other + "/below")
                for folder in [other, other + "/below"] {
                    #expect(link(good + "/policy", folder + "/policy") == 0)
                    let told = refusal(folder + "/policy")
                    #expect(told?.contains("its folder \(other) ") == true, "\(String(describing: told))")
                    #expect(told?.contains(owner == 0 ? "chmod go-w \(other)" : "chown root \(other)") == true)
                    unlink(folder + "/policy")
                }
            }
            make(other, mode: 0o755)
            #expect(link(good + "/policy", other + "/below/policy") == 0)
            #expect(refusal(other + "/below/policy") == nil)
            #expect(refusal(other + "/below/../below/./policy") == nil)
        }
    }

    @Test("may lie behind a link that root made, and not behind one in somebody else's folder, nor in a circle")
    func links() throws {
        try inFolders { good, other in
            #expect(symlink("good", top + "/link") == 0)
            #expect(symlink(good, top + "/absolute") == 0)
            #expect(refusal(top + "/link/policy") == nil)
            #expect(refusal(top + "/absolute/policy") == nil)
            make(other, mode: 0o777)
            #expect(symlink(good, other + "/link") == 0)
            #expect(refusal(other + "/link/policy")?.contains("its folder \(other) can be written by others") == true)
            // A link of root's that leads through such a folder.
            #expect(symlink("other/link", top + "/through") == 0)
            #expect(refusal(top + "/through/policy")?.contains("its folder \(other) ") == true)
            #expect(symlink("circle", top + "/circle") == 0)
            #expect(refusal(top + "/circle/policy") != nil)
            // The last part is no link at all.
            #expect(symlink("policy", good + "/again") == 0)
            #expect(refusal(good + "/again") != nil)
        }
    }

    @Test("is a file: not a folder, nothing, or something below a file")
    func files() throws {
        try inFolders { good, _ in
            for path in [good, good + "/", good + "/none", good + "/policy/x", "/", "", ".", ".."] {
                #expect(refusal(path) != nil, "\(path)")
            }
        }
    }
}
