# The SQL surface: pg_regress on a cluster with the tiny model of random weights, and with default settings else.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = "$FindBin::RealBin/..";
my @tests = map { s,.*/(.*)\.sql$,$1,r } sort glob "$folder/sql/*.sql";
my $node = new_cluster('regress', 'mixtral.model' => model('tiny'));

# --use-existing needs a database of that name
$node->safe_psql('postgres', 'CREATE DATABASE contrib_regression');
my $out = "$PostgreSQL::Test::Utils::tmp_check/regress";
mkdir $out;
for my $test (@tests)
{
	my $ok = run_log(
		[
			$ENV{PG_REGRESS}, '--use-existing', '--dbname=contrib_regression', '--host=' . $node->host,
			'--port=' . $node->port, "--inputdir=$folder", "--outputdir=$out", '--bindir=', $test
		]);
	ok($ok, "pg_regress $test");
	if (!$ok && -e "$out/regression.diffs")
	{
		diag(slurp_file("$out/regression.diffs"));
		unlink "$out/regression.diffs";
	}
}
$node->stop;
done_testing();
