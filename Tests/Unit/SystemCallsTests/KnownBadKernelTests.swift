import SystemCalls
import Testing

@Suite("The list of kernels that are known to be bad")
struct KnownBadKernelTests {
    @Test(
        "has a release whatever the distribution adds to it",
        arguments: [
            "6.17.0-1015-azure", "6.17.0-1018-azure", "6.18.4", "6.18.5-arch1-1", "6.18.4+deb14-amd64",
            "7.0.0-28-generic",
        ])
    func bad(release: String) throws {
        let entry = try #require(KnownBadKernel.entry(for: release))
        #expect(release.hasPrefix(entry.release))
    }

    @Test(
        "has neither the fixed ones nor those that only begin alike",
        arguments: [
            "6.18.6", "6.18.44", "6.18.40-rc1", "6.17.0-1016-azure", "6.17.0-1015", "7.0.0-280-generic",
            "7.0.0-29-generic",
            "7.3.4", "",
        ])
    func good(release: String) {
        #expect(KnownBadKernel.entry(for: release) == nil)
    }

    @Test("says of each what happens, what to do, and where that is reported")
    func complete() {
        for entry in KnownBadKernel.all {
            #expect(!entry.fault.isEmpty && !entry.remedy.isEmpty && entry.report.hasPrefix("github.com/"))
        }
    }
}
